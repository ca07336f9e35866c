"""Loading metric networks from local files; each is called as its metric needs it."""

import hashlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from magicdistill.models.metrics import weight_files
from magicdistill.models.metrics.columns.registry import METRICS, added, all_metrics
from magicdistill.models.metrics.lpips import Lpips
from magicdistill.models.metrics.results import AbsentMetric
from magicdistill.models.metrics.weight_files import (
    NETWORKS,
    MetricNetwork,
    digest_network,
    find_files,
)


class Inception(nn.Module):
    """Pooled features of images, resized inside as TensorFlow did."""

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__()
        self.script = _script(files[0])

    def forward(self, frames: UInt8[Tensor, "b 3 y x"]) -> Float[Tensor, "b 2048"]:
        return self.script(frames, return_features=True)


class I3D(nn.Module):
    """Logits of clips, rescaled and resized inside to 224 x 224."""

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__()
        self.script = _script(files[0])

    def forward(self, frames: UInt8[Tensor, "b t 3 y x"]) -> Float[Tensor, "b 400"]:
        clips = frames.movedim(1, 2).float()
        return self.script(clips, rescale=True, resize=True, return_features=True)


class Dino(nn.Module):
    """The class token after the last norm, for images of any aspect."""

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__()
        from transformers import ViTModel

        self.vit: Any = ViTModel.from_pretrained(
            files[0], add_pooling_layer=False, local_files_only=True
        )

    def forward(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b d"]:
        return self.vit(images, interpolate_pos_encoding=True).last_hidden_state[:, 0]


class Aesthetics(nn.Module):
    """About 1 to 10 for each image: a linear map of the unit CLIP embedding."""

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__()
        from transformers import CLIPVisionModelWithProjection

        clip, head = files
        self.clip: Any = CLIPVisionModelWithProjection.from_pretrained(clip, local_files_only=True)
        self.head = nn.Linear(self.clip.config.projection_dim, 1)
        self.head.load_state_dict(torch.load(head, map_location="cpu", weights_only=True))

    def forward(self, images: Float[Tensor, "b 3 224 224"]) -> Float[Tensor, " b"]:
        embeddings = self.clip(images).image_embeds
        return self.head(nn.functional.normalize(embeddings, dim=-1)).squeeze(1)


class ClipEmbeddings(nn.Module):
    """Unit CLIP embeddings of images."""

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__()
        from transformers import CLIPVisionModelWithProjection

        self.clip: Any = CLIPVisionModelWithProjection.from_pretrained(
            files[0], local_files_only=True
        )

    def forward(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b d"]:
        return nn.functional.normalize(self.clip(images).image_embeds, dim=-1)


class Scripted(nn.Module):
    """A TorchScript export that is called as it is: MUSIQ, RAFT, AMT, VideoMAE
    (docs/evaluation.md)."""

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__()
        self.script = _script(files[0])

    def forward(self, *images: Float[Tensor, "b 3 *size"]) -> Tensor:
        return self.script(*images)


BUILDERS: dict[MetricNetwork, Callable[[Sequence[Path]], nn.Module]] = {
    weight_files.INCEPTION: Inception,
    weight_files.CLIP: ClipEmbeddings,
    weight_files.I3D: I3D,
    weight_files.VIDEOMAE: Scripted,
    weight_files.LPIPS: Lpips.load,
    weight_files.DINO: Dino,
    weight_files.AESTHETICS: Aesthetics,
    weight_files.MUSIQ: Scripted,
    weight_files.RAFT: Scripted,
    weight_files.AMT: Scripted,
}


def load_network(
    network: MetricNetwork, folder: Path | None, device: torch.device | str = "cpu"
) -> nn.Module | AbsentMetric:
    """Return the network in evaluation mode, or why there is none.

    A file that is there but cannot be read raises: it is no reason to leave a metric out.
    """
    files = find_files(network, folder)
    if isinstance(files, AbsentMetric):
        return files
    build = network.build or BUILDERS[network]
    return build(files).eval().requires_grad_(False).to(device)


def networks_of(metrics: Collection[str]) -> list[MetricNetwork]:
    """Return the networks that these metrics need, those of plugins last."""
    wanted = dict.fromkeys(cls.NETWORK for name in metrics if (cls := METRICS.get(name)))
    needed = [network for network in wanted if network is not None]
    own = [network for network in NETWORKS if network in needed]
    return [*own, *(network for network in needed if network not in own)]


def absent_metrics(folder: Path | None) -> dict[str, AbsentMetric]:
    """Return the metrics whose files cannot be used, with the reason."""
    found = {network: find_files(network, folder) for network in networks_of(METRICS.names())}
    absent = {m.name: found[m.NETWORK] for m in all_metrics() if m.NETWORK is not None}
    return {name: files for name, files in absent.items() if isinstance(files, AbsentMetric)}


def digest_networks(folder: Path | None, metrics: Collection[str] | None = None) -> str:
    """Return a digest of what measures these metrics, by default all: networks that can be used
    and metrics of plugins. Equal scores come from equal digests."""
    metrics = METRICS.names() if metrics is None else metrics
    total = hashlib.sha256()
    for network in networks_of(metrics):
        if folder is not None and not isinstance(find_files(network, folder), AbsentMetric):
            total.update(f"{network.title} {digest_network(network, folder)}".encode())
    for metric in added(metrics):
        total.update(f"{metric.name} {metric.CODE}".encode())
    return total.hexdigest()


def _script(file: Path) -> Any:
    return torch.jit.load(file, map_location="cpu")
