"""LPIPS by its definition, read from files of the published layout."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from magicdistill.models.metrics.lpips import SCALE, SHIFT, WIDTHS, Lpips

CONVOLUTIONS = {0: (3, 11), 3: (64, 5), 6: (192, 3), 8: (384, 3), 10: (256, 3)}
"""Inputs and kernels of AlexNet's layers by their place in torchvision's `features`."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Write random weights as torchvision and the LPIPS authors name them."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("lpips")
    backbone = {"classifier.6.weight": torch.zeros(1, 1)}
    for width, (place, (inputs, side)) in zip(WIDTHS, CONVOLUTIONS.items(), strict=True):
        weight = torch.randn(width, inputs, side, side) / (side * inputs**0.5)
        backbone |= {
            f"features.{place}.weight": weight,
            f"features.{place}.bias": torch.randn(width) / 9,
        }
    heads = {f"lin{i}.model.1.weight": torch.rand(1, w, 1, 1) for i, w in enumerate(WIDTHS)}
    paths = [folder / "alexnet.pth", folder / "heads.pth"]
    for path, state in zip(paths, (backbone, heads), strict=True):
        torch.save(state, path)
    return paths


def images(seed: int) -> Tensor:
    return 2 * torch.rand(2, 3, 64, 80, generator=torch.Generator().manual_seed(seed)) - 1


def activations(state: dict[str, Tensor], image: Tensor) -> list[Tensor]:
    """Run AlexNet by hand on (3, y, x); return the five rectified layers."""
    hidden = (image - torch.tensor(SHIFT).view(3, 1, 1)) / torch.tensor(SCALE).view(3, 1, 1)
    found = []
    for index, place in enumerate(CONVOLUTIONS):
        if index in (1, 2):
            hidden = functional.max_pool2d(hidden, 3, 2)
        weight, bias = (state[f"features.{place}.{name}"] for name in ("weight", "bias"))
        stride, pad = (4, 2) if index == 0 else (1, weight.shape[-1] // 2)
        hidden = functional.conv2d(hidden[None], weight, bias, stride, pad)[0].relu()
        found.append(hidden)
    return found


def test_the_distance_is_the_weighted_square_of_unit_features(files: list[Path]) -> None:
    state, heads = (torch.load(path) for path in files)
    a, b = images(0), images(1)
    expected = []
    for x, y in zip(a, b, strict=True):
        total = 0.0
        pairs = zip(activations(state, x), activations(state, y), strict=True)
        for layer, (left, right) in enumerate(pairs):
            weight = heads[f"lin{layer}.model.1.weight"].flatten()
            squares = (left / left.norm(dim=0) - right / right.norm(dim=0)).square()
            total += float(torch.einsum("c,cyx->yx", weight, squares).mean())
        expected.append(total)
    assert Lpips.load(files)(a, b).tolist() == pytest.approx(expected, rel=1e-4)


def test_with_equal_weights_it_counts_cosines(files: list[Path]) -> None:
    """|u - v|^2 = 2 - 2 cos of unit vectors: with heads of one, nothing else is left."""
    lpips = Lpips.load(files)
    for head in lpips.heads:
        assert isinstance(head, nn.Conv2d)
        head.weight.fill_(1)
    state = torch.load(files[0])
    a, b = images(0)[:1], images(1)[:1]
    pairs = zip(activations(state, a[0]), activations(state, b[0]), strict=True)
    expected = sum(
        float((2 - 2 * functional.cosine_similarity(x, y, dim=0)).mean()) for x, y in pairs
    )
    assert float(lpips(a, b)) == pytest.approx(expected, rel=1e-4)


def test_it_is_a_distance_that_grows_with_noise(files: list[Path]) -> None:
    lpips, a, b = Lpips.load(files), images(0), images(1)
    assert lpips(a, a).tolist() == [0, 0]
    torch.testing.assert_close(lpips(a, b), lpips(b, a))
    found = [float(lpips(a, (1 - share) * a + share * b).mean()) for share in (0.1, 0.4, 1.0)]
    assert found == sorted(found) and found[0] > 0


def test_a_file_of_another_network_is_refused(files: list[Path]) -> None:
    with pytest.raises(RuntimeError, match="Missing key"):
        Lpips.load(files[::-1])
