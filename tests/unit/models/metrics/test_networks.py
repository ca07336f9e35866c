"""Metric networks: absent with a reason, or read from files and called as their metric needs."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, ViTConfig, ViTModel

from magicdistill.models.metrics import weight_files
from magicdistill.models.metrics.columns.registry import dimensions
from magicdistill.models.metrics.networks import (
    I3D,
    Aesthetics,
    Dino,
    Inception,
    absent_metrics,
    digest_networks,
    load_network,
)
from magicdistill.models.metrics.results import AbsentMetric
from magicdistill.models.metrics.weight_files import (
    NETWORKS,
    MetricNetwork,
    find_files,
)


class Detector(nn.Module):
    """The call of the published FID file: mean colours, with features asked for."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        assert return_features
        return images.float().mean([2, 3]).repeat(1, 683)[:, :2048]


class VideoDetector(nn.Module):
    """The call of the published FVD file: it rescales levels of 255 itself."""

    def forward(self, clips: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        assert rescale and resize and return_features
        return (2 * clips / 255 - 1).mean([2, 3, 4]).repeat(1, 134)[:, :400]


class Sharpness(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return 100 * images.std([1, 2, 3])


def scripted(module: nn.Module, path: Path) -> Path:
    torch.jit.script(module).save(str(path))
    return path


def tiny_vit(folder: Path) -> Path:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=8,
    )  # fmt: skip
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def tiny_clip(folder: Path) -> Path:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=224, patch_size=56, projection_dim=8,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def absent(found: object) -> str:
    assert isinstance(found, AbsentMetric)
    return found.reason


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.files[0].name)
def test_without_its_files_a_network_is_absent_with_where_to_get_them(
    network: MetricNetwork, tmp_path: Path
) -> None:
    assert "no folder of metric weights" in absent(load_network(network, None))
    reason = absent(load_network(network, tmp_path))
    assert network.files[0].name in reason and network.files[0].source in reason


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.files[0].name)
def test_a_file_with_a_known_digest_is_not_replaced_by_another(
    network: MetricNetwork, tmp_path: Path
) -> None:
    for file in network.files:
        (tmp_path / file.name).write_bytes(b"another network")
    if any(file.sha256 for file in network.files):
        assert "is another file: its SHA-256 is" in absent(load_network(network, tmp_path))
    else:
        with pytest.raises(Exception):  # noqa: B017  each library has its own
            load_network(network, tmp_path)


def test_networks_and_dimensions_cover_each_other() -> None:
    metrics = [*absent_metrics(None), "temporal_flickering"]
    assert sorted(metrics) == sorted(
        [*dimensions(), "fid", "kid", "cmmd", "fvd", "kvd", "fvd_videomae", "lpips"]
    )
    names = [file.name for network in NETWORKS for file in network.files]
    assert len(set(names)) == len(names)
    digests = [file.sha256 for network in NETWORKS for file in network.files if file.sha256]
    assert all(len(bytes.fromhex(digest)) == 32 for digest in digests)


def test_a_second_missing_file_is_named(tmp_path: Path) -> None:
    tiny_clip(tmp_path / "clip-vit-large-patch14")
    reason = absent(find_files(weight_files.AESTHETICS, tmp_path))
    assert "sa_0_4_vit_l_14_linear.pth is missing" in reason


def test_inception_gives_features_of_eight_bit_frames(tmp_path: Path) -> None:
    network = Inception([scripted(Detector(), tmp_path / "inception.pt")])
    frames = torch.full((2, 3, 8, 8), 51, dtype=torch.uint8)
    assert (network(frames) == 51).all()


def test_i3d_takes_frames_as_clips_of_levels(tmp_path: Path) -> None:
    network = I3D([scripted(VideoDetector(), tmp_path / "i3d.pt")])
    frames = torch.zeros(2, 16, 3, 8, 8, dtype=torch.uint8)
    frames[:, :, 1] = 255
    found = network(frames)
    assert found.shape == (2, 400) and found[0, :3].tolist() == [-1, 1, -1]


def test_an_export_is_called_as_it_is(tmp_path: Path) -> None:
    scripted(Sharpness(), tmp_path / weight_files.MUSIQ.files[0].name)
    network = load_network(weight_files.MUSIQ, tmp_path)
    assert isinstance(network, nn.Module)
    rng = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(network(rng), 100 * rng.std([1, 2, 3]))


def test_dino_gives_the_class_token_of_images_of_any_aspect(tmp_path: Path) -> None:
    tiny_vit(tmp_path / "dino-vitb16")
    network = load_network(weight_files.DINO, tmp_path)
    assert isinstance(network, Dino)
    square, wide = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 56)
    plain = ViTModel.from_pretrained(tmp_path / "dino-vitb16", add_pooling_layer=False)
    expected = plain(square).last_hidden_state[:, 0]
    torch.testing.assert_close(network(square), expected)
    assert network(wide).shape == (2, 16) and not network(wide).requires_grad


def test_aesthetics_are_linear_in_the_unit_embedding(tmp_path: Path) -> None:
    folder = tiny_clip(tmp_path / "clip-vit-large-patch14")
    head = nn.Linear(8, 1)
    torch.save(head.state_dict(), tmp_path / "sa_0_4_vit_l_14_linear.pth")
    network = load_network(weight_files.AESTHETICS, tmp_path)
    assert isinstance(network, Aesthetics)
    images = torch.randn(3, 3, 224, 224)
    with torch.no_grad():
        vectors = CLIPVisionModelWithProjection.from_pretrained(folder)(images).image_embeds
        expected = [float(head.weight[0] @ (v / v.norm()) + head.bias) for v in vectors]
    assert network(images).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("edit", ["config.json", "model.safetensors"])
def test_the_digest_of_networks_is_that_of_their_files(edit: str, tmp_path: Path) -> None:
    folder = tiny_vit(tmp_path / "dino-vitb16")
    first, again = (digest_networks(tmp_path) for _ in range(2))
    (folder / edit).write_bytes((folder / edit).read_bytes() + b" ")
    assert first == again != digest_networks(tmp_path)
    assert digest_networks(None) != first
