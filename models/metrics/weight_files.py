"""The networks that metrics look through: their files, where they come from, on what terms."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magicdistill.models.checksums import sha256_of
from magicdistill.models.metrics.results import AbsentMetric


@dataclass(frozen=True)
class WeightFile:
    """A file, or a folder that transformers saved, under the folder of metric weights."""

    name: str
    source: str
    licence: str
    sha256: str | None = None
    """Null where no published digest is known: such a file is taken as it is."""


@dataclass(frozen=True)
class MetricNetwork:
    """A network that metrics look through, and the files that it is made of."""

    title: str
    files: tuple[WeightFile, ...]
    build: Callable[[Sequence[Path]], Any] | None = None
    """Makes the module of its files; null for the networks that `networks.py` builds."""


INCEPTION = MetricNetwork(
    "Inception-v3 of FID (TensorFlow's of 2015-12-05), TorchScript",
    (
        WeightFile(
            "inception-2015-12-05.pt",
            "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
            "Apache-2.0 (TensorFlow's weights)",
            "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
        ),
    ),
)
I3D = MetricNetwork(
    "I3D on Kinetics-400, the TorchScript file of StyleGAN-V's FVD",
    (
        WeightFile(
            "i3d_torchscript.pt",
            "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1",
            "Apache-2.0 (DeepMind's weights)",
            "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
        ),
    ),
)
LPIPS = MetricNetwork(
    "LPIPS 0.1: AlexNet on ImageNet with linear heads",
    (
        WeightFile(
            "alexnet-owt-7be5be79.pth",
            "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
            "BSD-3-Clause (torchvision)",
            "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        ),
        WeightFile(
            "lpips-alex-0.1.pth",
            "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/alex.pth",
            "BSD-2-Clause",
            "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        ),
    ),
)
DINO = MetricNetwork(
    "DINO ViT-B/16",
    (WeightFile("dino-vitb16", "https://huggingface.co/facebook/dino-vitb16", "Apache-2.0"),),
)
AESTHETICS = MetricNetwork(
    "LAION's linear predictor on CLIP ViT-L/14",
    (
        WeightFile(
            "clip-vit-large-patch14",
            "https://huggingface.co/openai/clip-vit-large-patch14",
            "MIT (openai/CLIP)",
        ),
        WeightFile(
            "sa_0_4_vit_l_14_linear.pth",
            "https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth",
            "MIT",
        ),
    ),
)
CLIP = MetricNetwork(
    "CLIP ViT-L/14 at 336 px",
    (
        WeightFile(
            "clip-vit-large-patch14-336",
            "https://huggingface.co/openai/clip-vit-large-patch14-336",
            "not stated there (MIT in openai/CLIP)",
        ),
    ),
)
VIDEOMAE = MetricNetwork(
    "VideoMAE-v2 ViT-g on SSv2 of content-debiased FVD, exported to TorchScript",
    (
        WeightFile(
            "videomae-v2-ssv2.torchscript.pt",
            "https://github.com/songweige/content-debiased-fvd",
            "see there (VideoMAE-v2's weights)",
        ),
    ),
)
MUSIQ = MetricNetwork(
    "MUSIQ on SPAQ, exported to TorchScript from pyiqa's musiq_spaq_ckpt-358bb6af.pth",
    (
        WeightFile(
            "musiq-spaq.torchscript.pt",
            "https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/musiq_spaq_ckpt-358bb6af.pth",
            "CC-BY-NC-SA-4.0 (pyiqa's conversion of Google's weights)",
        ),
    ),
)
RAFT = MetricNetwork(
    "RAFT on FlyingThings, exported to TorchScript from raft-things.pth",
    (
        WeightFile(
            "raft-things.torchscript.pt",
            "https://dl.dropboxusercontent.com/s/4j4z58wuv8o0mfz/models.zip",
            "BSD-3-Clause",
        ),
    ),
)
AMT = MetricNetwork(
    "AMT-S frame interpolation, exported to TorchScript from amt-s.pth",
    (
        WeightFile(
            "amt-s.torchscript.pt",
            "https://huggingface.co/lalala125/AMT/resolve/main/amt-s.pth",
            "CC-BY-NC-4.0",
        ),
    ),
)
NETWORKS = (INCEPTION, CLIP, I3D, VIDEOMAE, LPIPS, DINO, AESTHETICS, MUSIQ, RAFT, AMT)


def find_files(network: MetricNetwork, folder: Path | None) -> list[Path] | AbsentMetric:
    """Return the network's files in order, or why they cannot be used."""
    if folder is None:
        return AbsentMetric(f"no folder of metric weights was given ({network.title})")
    paths = [folder / file.name for file in network.files]
    for file, path in zip(network.files, paths, strict=True):
        if not path.exists():
            return AbsentMetric(f"{path} is missing: {network.title}, from {file.source}")
        if file.sha256 and (found := sha256_of(path)) != file.sha256:
            return AbsentMetric(f"{path} is another file: its SHA-256 is {found}")
    return paths


def digest_network(network: MetricNetwork, folder: Path) -> str:
    """Return a digest of the network's files: equal features come from equal digests."""
    total = hashlib.sha256()
    for file in network.files:
        root = folder / file.name
        for path in sorted(p for p in root.rglob("*") if p.is_file()) or [root]:
            total.update(bytes.fromhex(sha256_of(path)))
    return total.hexdigest()
