"""Kernel distances against closed forms: unbiased, where the Frechet distance is not."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from magicdistill.models.metrics.columns.base import Clip, ClipBatch
from magicdistill.models.metrics.columns.comparisons import Fid, Fvd
from magicdistill.models.metrics.columns.kernel_distances import Cmmd, Kid, Kvd
from magicdistill.models.metrics.frechet import frechet_distance
from magicdistill.models.metrics.kernel_distance import (
    SUBSET_SIZE,
    gaussian,
    polynomial,
    squared_mmd,
    subset_estimates,
)


def normal(rng: np.random.Generator, count: int, width: int, shift: float = 0.0) -> np.ndarray:
    return rng.standard_normal((count, 1, width)) + shift


def test_the_estimate_is_the_sum_over_pairs_by_hand() -> None:
    x, y = np.array([[[1.0]], [[2.0]], [[4.0]]]), np.array([[[0.0]], [[3.0]]])
    within_x = 2 * ((1 * 2 + 1) ** 3 + (1 * 4 + 1) ** 3 + (2 * 4 + 1) ** 3) / 6
    cross = (1 + 1 + 1 + 4**3 + 7**3 + 13**3) / 6
    assert squared_mmd(x, y, polynomial) == pytest.approx(within_x + 1 - 2 * cross)


def test_two_gaussians_have_their_closed_form() -> None:
    """Under a Gaussian kernel of width s, E k(x, y) of N(mu, I) and N(nu, I) is
    (s^2 / (s^2 + 2))^(d / 2) exp(-|mu - nu|^2 / 2(s^2 + 2))."""
    rng, width, sigma, shift = np.random.default_rng(0), 3, 2.0, 0.8
    scale = (sigma**2 / (sigma**2 + 2)) ** (width / 2)
    expected = 2 * scale * (1 - np.exp(-width * shift**2 / (2 * (sigma**2 + 2))))

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return gaussian(x, y, sigma)

    found = [
        squared_mmd(normal(rng, 20, width, shift), normal(rng, 30, width), kernel)
        for _ in range(400)
    ]
    assert np.mean(found) == pytest.approx(expected, abs=float(4 * np.std(found) / 20))
    assert np.std(found) / 20 < 0.05 * expected


@pytest.mark.parametrize("kernel", [polynomial, gaussian])
def test_the_floor_of_a_kernel_distance_is_zero_where_that_of_frechet_is_not(kernel: Any) -> None:
    rng = np.random.default_rng(0)
    pairs = [(normal(rng, 20, 16), normal(rng, 20, 16)) for _ in range(200)]
    found = np.array([squared_mmd(x, y, kernel) for x, y in pairs])
    assert abs(found.mean()) < 3 * found.std() / np.sqrt(len(found))
    assert 0.3 < (found < 0).mean() < 0.8
    distances = np.array([frechet_distance(x[:, 0], y[:, 0]) for x, y in pairs])
    assert distances.min() > 1 and distances.mean() > 20 * distances.std() / np.sqrt(len(pairs))


def test_frames_of_one_clip_do_not_bias_the_estimate() -> None:
    """Rows of a clip are nearly equal; taken for independent, they would look like a difference."""
    rng = np.random.default_rng(0)

    def clips() -> np.ndarray:
        return normal(rng, 10, 8) + 0.1 * rng.standard_normal((10, 12, 8))

    pairs = [(clips(), clips()) for _ in range(150)]
    found = np.array([squared_mmd(x, y, polynomial) for x, y in pairs])
    assert abs(found.mean()) < 3 * found.std() / np.sqrt(150)
    apart = [squared_mmd(x.reshape(-1, 1, 8), y.reshape(-1, 1, 8), polynomial) for x, y in pairs]
    assert np.mean(apart) > 10 * np.std(found) / np.sqrt(150)


def test_many_rows_are_estimated_in_subsets_as_published() -> None:
    rng = np.random.default_rng(0)
    few, frames = normal(rng, SUBSET_SIZE, 2), rng.standard_normal((100, 129, 2))
    assert len(subset_estimates(few, few + 1, polynomial)) == 1
    sizes = set()

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        sizes.add((len(x), len(y)))
        return np.zeros((len(x), len(y)))

    assert len(subset_estimates(frames, few, kernel)) == 100
    assert sizes == {(SUBSET_SIZE, SUBSET_SIZE)}


class Levels(nn.Module):
    """In the place of a network: the mean level of every channel; counts its calls."""

    calls = 0

    def forward(self, frames: Tensor) -> Tensor:
        Levels.calls += 1
        axes = [i for i in range(1, frames.ndim) if i != frames.ndim - 3]
        return nn.functional.normalize(frames.double().mean(axes), dim=1)


@pytest.mark.parametrize(("metric", "rows"), [(Kid(), 20), (Kvd(), 1), (Cmmd(), 20)])
def test_features_are_rows_of_each_clip(metric: Any, rows: int) -> None:
    frames = torch.randint(0, 256, (3, 20, 3, 8, 12), dtype=torch.uint8)
    batch = ClipBatch(frames, [Clip(each, each, 24.0) for each in frames])
    found = metric.measure(batch, Levels())
    assert found.shape == (3, rows, 3)
    assert metric.summarise(found, found, None) == 0
    assert metric.summarise(found, found[::-1] + 1e-3, None) != 0


def test_kernel_and_frechet_distances_share_their_features() -> None:
    assert (Kid().stored, Kvd().stored) == (Fid().stored, Fvd().stored)


@pytest.mark.parametrize(("window", "count"), [(None, 1), (16, 8), (64, 2), (200, 1)])
def test_fvd_sees_windows_one_after_another(window: int | None, count: int) -> None:
    frames = torch.arange(129).to(torch.uint8).view(129, 1, 1, 1).expand(129, 3, 2, 2)
    lengths = []

    def network(clips: Tensor) -> Tensor:
        lengths.append(clips.shape[1])
        return clips[:, 0, :, 0, 0].float()

    batch = ClipBatch(frames, [Clip(frames, frames, 24.0)], window)
    found = Fvd().measure(batch, network)
    step = min(window or 129, 129)
    assert lengths == [step]
    np.testing.assert_array_equal(found[0, :, 0], step * np.arange(count))


def test_cmmd_is_a_thousand_times_the_estimate_under_its_kernel() -> None:
    x, y = np.array([[[1.0, 0.0]], [[0.0, 1.0]]]), np.array([[[1.0, 0.0]], [[1.0, 0.0]]])
    expected = 1000 * (np.exp(-2 / 200) + 1 - (1 + np.exp(-2 / 200)))
    assert Cmmd().distance(x, y) == pytest.approx(expected, abs=1e-9)
    assert Cmmd().distance(-y, y) == pytest.approx(2000 * (1 - np.exp(-4 / 200)))
