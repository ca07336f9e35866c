"""Metrics of one's own: registered, measured, summed up and printed beside the others."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from magicdistill.models.metrics.columns.base import (
    Clip,
    ClipBatch,
    DistanceMetric,
    RatioMetric,
    ScoreMetric,
)
from magicdistill.models.metrics.columns.registry import METRICS, arrow, title
from magicdistill.models.metrics.frechet import frechet_distance
from magicdistill.models.metrics.networks import absent_metrics, digest_networks
from magicdistill.models.metrics.preprocessing import to_frames
from magicdistill.models.metrics.results import AbsentMetric
from magicdistill.models.metrics.suite import NO_CLIPS, Measured, MetricSuite, summarise
from magicdistill.models.metrics.weight_files import MetricNetwork, WeightFile
from tests.registries import registries_restored


class Scale(nn.Module):
    """A network of one weight."""

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(float(files[0].read_text())))

    def forward(self, frames: Tensor) -> Tensor:
        return self.weight * frames.float().mean()


SCALE = MetricNetwork("a scale", (WeightFile("scale.txt", "the test", "CC0"),), build=Scale)


class Level(ScoreMetric):
    """Mean level, scaled by a network."""

    name: Literal["level"] = "level"
    ARROW: ClassVar = "↓"
    NETWORK: ClassVar = SCALE

    def score(self, clip: Clip, network: Any) -> float:
        return float(network(clip.frames))


class Redness(RatioMetric):
    """Red over that of the real clips."""

    name: Literal["redness"] = "redness"
    TITLE: ClassVar = "red ÷ real"

    def levels(self, pixels: Tensor) -> Tensor:
        return 1 + pixels[:, 0].mean(dim=(1, 2, 3))


class ColourDistance(DistanceMetric):
    """Distance of mean colours."""

    name: Literal["colour_distance"] = "colour_distance"

    def features(self, batch: ClipBatch, network: Any) -> Tensor:
        return batch.pixels.mean(dim=(2, 3, 4))


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with registries_restored():
        for cls in (Level, Redness, ColourDistance):
            METRICS.register(cls)
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scale.txt").write_text("0.5")
    return tmp_path


def clips(*levels: float) -> Tensor:
    """Return clips of these mean levels, in which every pixel moves."""
    noise = 0.05 * torch.randn(3, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    return torch.tensor(levels).view(-1, 1, 1, 1, 1) + noise


def test_all_three_kinds_are_measured_and_summed_up(folder: Path) -> None:
    suite = MetricSuite(folder)
    generated, truth = clips(-0.75, 0.75), clips(-0.5, 0.25)
    found, real = (suite.measure(c, c, 24.0) for c in (generated, truth))
    found.save(folder / "part.npz")
    table = summarise(Measured.load(folder / "part.npz"), real, absent_metrics(folder))
    assert table["level"] == pytest.approx(0.5 * to_frames(generated).float().mean().item())
    red, real_red = (1 + c[:, 0].mean().item() for c in (generated, truth))
    assert table["redness"] == pytest.approx(red / real_red)
    colours = (c.mean(dim=(2, 3, 4)).numpy() for c in (generated, truth))
    assert table["colour_distance"] == pytest.approx(frechet_distance(*colours))
    assert tuple(table)[-3:] == ("level", "redness", "colour_distance")


def test_without_its_file_a_metric_is_absent_with_the_reason(tmp_path: Path) -> None:
    measured = MetricSuite(tmp_path).measure(clips(0.0, 0.5), clips(0.0, 0.5), 24.0)
    level = summarise(measured, measured, absent_metrics(tmp_path))["level"]
    assert isinstance(level, AbsentMetric) and "scale.txt is missing" in level.reason


def test_pictures_have_nothing_to_compare_with(folder: Path) -> None:
    measured = MetricSuite(folder).measure(clips(0.0, 0.5), clips(0.0, 0.5)[:, :, :1], 24.0)
    table = summarise(measured, None, absent_metrics(folder))
    assert table["redness"] == table["colour_distance"] == NO_CLIPS
    assert isinstance(table["level"], float)


def test_only_clips_that_count_are_averaged(folder: Path) -> None:
    pixels = clips(-0.5, 0.5)
    measured = MetricSuite(folder).measure(pixels, pixels, 24.0)
    counting = {"level": np.array([False, True])}
    level = summarise(measured, measured, {}, None, counting)["level"]
    assert level == pytest.approx(0.5 * to_frames(pixels[1:]).float().mean().item())


def test_tables_know_its_name_and_arrow() -> None:
    assert (title("level"), arrow("level")) == ("level", "↓")
    assert (title("redness"), arrow("redness")) == ("red ÷ real", "→ 1")


def test_stored_measures_are_of_the_metrics_that_made_them(folder: Path) -> None:
    with_all = digest_networks(folder)
    (folder / "scale.txt").write_text("0.75")
    assert digest_networks(folder) != with_all
    own = digest_networks(None, ["average"])
    METRICS._classes.pop("redness")
    assert digest_networks(None, ["average"]) != own
