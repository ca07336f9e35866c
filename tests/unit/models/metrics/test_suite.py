"""All metrics together: those that are there, those that are absent, and parts that merge."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from magicdistill.models.metrics import weight_files
from magicdistill.models.metrics.columns.registry import METRICS, comparing, dimensions
from magicdistill.models.metrics.networks import absent_metrics, digest_networks
from magicdistill.models.metrics.results import AbsentMetric
from magicdistill.models.metrics.suite import (
    NO_CLIPS,
    NOT_COUNTED,
    Measured,
    MetricSuite,
    reference,
    summarise,
)

FPS = 24.0


class Mean(nn.Module):
    """In the place of AMT: the mean of both frames."""

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        return (before + after) / 2 + 1e-6


class Difference(nn.Module):
    """In the place of RAFT: the loss of level as motion across."""

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        return (before - after)[:, :2]


class Level(nn.Module):
    """In the place of MUSIQ: the mean level, of 100."""

    def forward(self, image: Tensor) -> Tensor:
        return 100 * image.mean([1, 2, 3])


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write TorchScript files with the calls that docs/evaluation.md asks exports for."""
    folder = tmp_path_factory.mktemp("weights")
    networks = (weight_files.AMT, weight_files.RAFT, weight_files.MUSIQ)
    for network, module in zip(networks, (Mean(), Difference(), Level()), strict=True):
        torch.jit.script(module).save(str(folder / network.files[0].name))
    return folder


def clips(count: int, seed: int = 0) -> Tensor:
    """Return clips that differ in their motion."""
    rng = torch.Generator().manual_seed(seed)
    first = torch.rand(count, 3, 1, 32, 32, generator=rng) - 0.5
    step = 0.02 * torch.rand(count, 1, 1, 1, 1, generator=rng)
    return first + step * torch.arange(17).view(1, 1, -1, 1, 1)


def test_without_weights_only_what_needs_none_is_measured() -> None:
    pixels = clips(4)
    measured = MetricSuite(None).measure(pixels, pixels, FPS)
    table = summarise(measured, measured, absent_metrics(None))
    assert tuple(table) == METRICS.names()
    numbers = {name for name, metric in table.items() if not isinstance(metric, AbsentMetric)}
    assert numbers == {
        "temporal_flickering", "proxy_frechet_distance", "dynamic_degree_proxy", "flicker_proxy",
    }  # fmt: skip
    assert table["proxy_frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert table["dynamic_degree_proxy"] == table["flicker_proxy"] == 1
    assert isinstance(table["average"], AbsentMetric)
    assert all(name in table["average"].reason for name in dimensions()[:-1])


def test_a_given_network_brings_its_metrics(exports: Path) -> None:
    frames = torch.full((2, 3, 17, 32, 32), -1.0)
    frames[1, :, 8:] = 1
    measured = MetricSuite(exports).measure(frames, frames, FPS)
    table = summarise(measured, measured, absent_metrics(exports))
    assert table["motion_smoothness"] == pytest.approx(1 - 0.5 * (127 / 8) / 255, abs=2e-3)
    assert table["imaging_quality"] == pytest.approx((0 + 9 / 17) / 2)
    assert table["dynamic_degree"] == 0
    assert table["temporal_flickering"] == pytest.approx(1 - (0 + 1 / 16) / 2)
    assert isinstance(table["lpips"], AbsentMetric) and "alexnet" in table["lpips"].reason


def test_chunks_merge_to_all_clips_at_once(exports: Path, tmp_path: Path) -> None:
    suite = MetricSuite(exports)
    pixels, real = clips(6), clips(6, seed=1)
    whole = suite.measure(pixels, real, FPS)
    parts = [suite.measure(pixels[i : i + 2], real[i : i + 2], FPS) for i in (0, 2, 4)]
    for index, part in enumerate(parts):
        part.save(tmp_path / f"{index}.npz")
    merged = Measured.merged(Measured.load(tmp_path / f"{i}.npz") for i in range(3))
    reference = suite.measure(real, real, FPS)
    expected, found = (summarise(m, reference, absent_metrics(exports)) for m in (whole, merged))
    for name in METRICS.names():
        if isinstance(expected[name], AbsentMetric):
            assert found[name] == expected[name]
        else:
            assert found[name] == pytest.approx(expected[name], rel=1e-6), name


def test_saved_measures_are_read_back_exactly(tmp_path: Path) -> None:
    measured = MetricSuite(None).measure(clips(2), clips(2), FPS)
    measured.save(tmp_path / "part.npz")
    found = Measured.load(tmp_path / "part.npz")
    for name, values in measured.scores.items():
        np.testing.assert_array_equal(found.scores[name], values)
    for name, values in measured.features.items():
        np.testing.assert_array_equal(found.features[name], values)
    assert found.features.keys() == measured.features.keys()
    assert found.scores.keys() == measured.scores.keys()


def test_one_clip_has_no_distance() -> None:
    measured = MetricSuite(None).measure(clips(1), clips(1), FPS)
    found = summarise(measured, measured, {n: AbsentMetric("") for n in METRICS.names()})
    assert isinstance(found["proxy_frechet_distance"], AbsentMetric)


def test_a_collapsed_generator_is_named() -> None:
    with pytest.raises(ValueError, match="no numbers"):
        MetricSuite(None).measure(clips(1) / 0, clips(1), FPS)


def test_pictures_have_nothing_to_be_compared_with(exports: Path) -> None:
    pixels = clips(3)
    measured = MetricSuite(exports).measure(pixels, pixels[:, :, :1], FPS)
    table = summarise(measured, None, absent_metrics(exports))
    assert {table[name] for name in comparing()} == {NO_CLIPS}
    assert isinstance(table["imaging_quality"], float)


def test_only_networks_that_count_are_loaded_and_averaged(exports: Path) -> None:
    columns = ("imaging_quality", "temporal_flickering", "average")
    suite = MetricSuite(exports, metrics=columns)
    assert list(suite.networks) == [weight_files.MUSIQ]
    measured = suite.measure(clips(3), clips(3), FPS)
    table = summarise(measured, measured, absent_metrics(exports), columns)
    assert table["fid"] == table["motion_smoothness"] == NOT_COUNTED
    flickering, imaging = table["temporal_flickering"], table["imaging_quality"]
    assert isinstance(flickering, float) and isinstance(imaging, float)
    assert table["average"] == pytest.approx((flickering + imaging) / 2)
    digests = {
        digest_networks(exports, names) for names in (columns, ("average",), METRICS.names())
    }
    assert len(digests) == 3


def test_a_score_is_the_mean_of_the_clips_that_count_for_it() -> None:
    measured = MetricSuite(None).measure(clips(4), clips(4), FPS)
    scores = measured.scores["temporal_flickering"]
    counting = {"temporal_flickering": np.array([True, False, True, False])}
    table = summarise(measured, measured, absent_metrics(None), METRICS.names(), counting)
    assert table["temporal_flickering"] == pytest.approx(scores[[0, 2]].mean())
    none = {"temporal_flickering": np.zeros(4, bool)}
    table = summarise(measured, measured, absent_metrics(None), METRICS.names(), none)
    assert isinstance(table["temporal_flickering"], AbsentMetric)


def test_a_reference_is_measured_once(tmp_path: Path) -> None:
    counts: list[int] = []

    def measure() -> Measured:
        counts.append(1)
        return MetricSuite(None).measure(clips(2), clips(2), FPS)

    first, second = (reference(tmp_path / "real.npz", measure) for _ in range(2))
    assert len(counts) == 1
    for name, values in first.features.items():
        np.testing.assert_array_equal(second.features[name], values)
