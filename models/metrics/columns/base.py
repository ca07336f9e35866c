"""What every metric answers for itself.

Every command reads recipes, which name metrics, so nothing here and in the files of metrics imports
torch before something is measured; tensors are therefore `Any`, with their shapes in words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from magicdistill.models.config import Config
from magicdistill.models.metrics.results import AbsentMetric, Metric
from magicdistill.models.metrics.weight_files import MetricNetwork

Array = np.ndarray
Arrow = Literal["↑", "↓", "→ 1"]


@dataclass(frozen=True)
class Clip:
    """One generated clip beside the real one whose first frame it continues."""

    frames: Any
    """8-bit frames (t 3 y x)."""
    real: Any
    """8-bit frames (s 3 y x) of the real clip, as many or a picture alone."""
    fps: float


@dataclass(frozen=True)
class ClipBatch:
    """Clips that are measured at once."""

    pixels: Any
    """All generated clips (b 3 t y x), in [-1, 1]."""
    clips: Sequence[Clip]
    """The same one by one, as a video file would hold them."""


class MetricBase(Config):
    """One column of the table of scores.

    A metric is a subclass of `ScoreMetric`, `RatioMetric` or `DistanceMetric` that names itself,
    `name: Literal["mine"] = "mine"`, and one line in `registry.py`, or `METRICS.register` in a
    plugin.
    """

    name: str = ""
    """What recipes and tables call it; every metric names itself."""
    TITLE: ClassVar[str] = ""
    """Name in tables; by default the name with spaces."""
    ARROW: ClassVar[Arrow] = "↑"
    """Where better values are."""
    DIGITS: ClassVar[int] = 4
    """Decimals in tables."""
    CODE: ClassVar[int] = 1
    """Raised when a plugin's metric changes its meaning: stored measures are then taken again."""
    NETWORK: ClassVar[MetricNetwork | None] = None
    """The network that it looks through; without its files the metric is absent."""
    COMPARES: ClassVar[bool] = False
    """Whether it needs real clips, not their first frames alone."""
    AVERAGED: ClassVar[bool] = False
    """Whether it is one of the dimensions whose mean is `average`."""

    def measure(self, batch: ClipBatch, network: Any) -> Any:
        """Return an array (b,) or statistics of a batch; None where there is nothing to measure.

        `network` is `NETWORK` built of its files, None for a metric without.
        """
        return None

    def summarise(self, found: Any, real: Any, counts: Array | None) -> Metric:
        """Return the metric from what was measured of all generated and of all real clips.

        Args:
            found: what was measured of the generated clips: an array (n,), or statistics.
            real: the same of the real clips, None where there are pictures alone.
            counts: which clips the metric is the mean of, bool (n,); None for all.
        """
        raise NotImplementedError


class ScoreMetric(MetricBase):
    """A number for each clip; the metric is their mean."""

    def score(self, clip: Clip, network: Any) -> float | None:
        """Return the score of a clip, None where it cannot have one.

        `network` is `NETWORK` built of its files, None for a metric without.
        """
        raise NotImplementedError

    def measure(self, batch: ClipBatch, network: Any) -> Array | None:
        """Return the scores (b,) of a batch."""
        scores = [self.score(clip, network) for clip in batch.clips]
        return None if None in scores else np.array(scores)

    def summarise(self, found: Array, real: Any, counts: Array | None) -> Metric:
        """Return the mean over the clips that count."""
        chosen = found if counts is None else found[counts]
        return float(chosen.mean()) if len(chosen) else AbsentMetric("no clip counts for it")


class RatioMetric(MetricBase):
    """A level of each clip; the metric is the mean level over that of the real clips."""

    ARROW: ClassVar[Arrow] = "→ 1"
    COMPARES: ClassVar[bool] = True

    def levels(self, pixels: Any) -> Any:
        """Return the levels (b,) of clips (b 3 t y x) in [-1, 1]."""
        raise NotImplementedError

    def measure(self, batch: ClipBatch, network: Any) -> Array | None:
        """Return the levels (b,) of a batch."""
        return self.levels(batch.pixels).cpu().numpy()

    def summarise(self, found: Array, real: Array, counts: Array | None) -> Metric:
        """Return the ratio of the means."""
        return float(found.mean() / real.mean())


class DistanceMetric(MetricBase):
    """The Frechet distance between features of all generated clips and of all real ones."""

    ARROW: ClassVar[Arrow] = "↓"
    COMPARES: ClassVar[bool] = True

    def features(self, batch: ClipBatch, network: Any) -> Any:
        """Return rows (n d) of features of a batch."""
        raise NotImplementedError

    def measure(self, batch: ClipBatch, network: Any) -> Any:
        """Return the statistics of a batch's features."""
        from magicdistill.models.metrics.frechet import FrechetStatistics

        return FrechetStatistics.of(self.features(batch, network).cpu().numpy())

    def summarise(self, found: Any, real: Any, counts: Array | None) -> Metric:
        """Return the distance, absent for a single row."""
        if min(found.count, real.count) > 1:
            return found.distance(real)
        return AbsentMetric("a distance of one sample is none: take more clips")


class Average(MetricBase):
    """The mean of the dimensions that count, which needs no measures of its own."""

    name: Literal["average"] = "average"
