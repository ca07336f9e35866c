"""What every metric answers for itself.

Every command reads recipes, which name metrics, so nothing here and in the files of metrics imports
torch before something is measured; tensors are therefore `Any`, with their shapes in words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from magicdistill.models.config import Config
from magicdistill.models.metrics.results import AbsentMetric, Metric, Uncertainty
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
    window: int | None = None
    """Frames of the windows that FVD sees (`evaluation.fvd_frames`); None for whole clips."""


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

    @property
    def stored(self) -> str:
        """The name of what it measures; metrics of one name share it, and one of them measures."""
        return self.name

    def measure(self, batch: ClipBatch, network: Any) -> Array | None:
        """Return an array of a batch, scores (b,) or features (b r d); None for nothing to measure.

        `network` is `NETWORK` built of its files, None for a metric without.
        """
        return None

    def summarise(self, found: Any, real: Any, counts: Array | None) -> Metric:
        """Return the metric from what was measured of all generated and of all real clips.

        Args:
            found: what was measured of the generated clips: scores (n,) or features (n r d).
            real: the same of the real clips, None where there are pictures alone.
            counts: which clips the metric is the mean of, bool (n,); None for all.
        """
        raise NotImplementedError

    def resamples(
        self, found: Any, real: Any, counts: Array | None, num_inputs: int, seed: int
    ) -> Array | None:
        """Return values of the metric on resampled videos, None for a metric without.

        Videos of one of the `num_inputs` inputs are resampled together; `found` has a video of
        each, then the next of each. Equal seeds resample the same inputs for all scores.
        """
        return None

    def uncertainty(self, found: Any, real: Any, seed: int) -> Uncertainty | None:
        """Return what the metric says of itself beyond an interval, None for nothing."""
        return None


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

    def resamples(
        self, found: Array, real: Any, counts: Array | None, num_inputs: int, seed: int
    ) -> Array | None:
        """Return means of bootstrapped inputs."""
        from magicdistill.models.metrics.resampling import bootstrap_ratio

        weights = np.ones(len(found)) if counts is None else counts.astype(float)
        sums = (found * weights).reshape(-1, num_inputs).sum(0)
        return bootstrap_ratio(sums, weights.reshape(-1, num_inputs).sum(0), seed)


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

    def resamples(
        self, found: Array, real: Array, counts: Array | None, num_inputs: int, seed: int
    ) -> Array:
        """Return ratios of bootstrapped inputs, each with its real clip."""
        from magicdistill.models.metrics.resampling import bootstrap_ratio

        return bootstrap_ratio(found.reshape(-1, num_inputs).mean(0), real, seed)


class DistanceMetric(MetricBase):
    """A distance between features of all generated clips and of all real ones, the Frechet
    distance unless `distance` is another."""

    ARROW: ClassVar[Arrow] = "↓"
    COMPARES: ClassVar[bool] = True

    STORED: ClassVar[str] = ""
    """Name of the features; distances of the same features give the same. By default its own."""

    @property
    def stored(self) -> str:
        """The name of its features."""
        return self.STORED or self.name

    def features(self, batch: ClipBatch, network: Any) -> Any:
        """Return rows (b*r d) of features of a batch, r for each clip, clip by clip."""
        raise NotImplementedError

    def distance(self, found: Array, real: Array) -> float:
        """Return the distance of features (n r d) and (m r d)."""
        from magicdistill.models.metrics.frechet import frechet_distance

        return frechet_distance(*(rows.reshape(-1, rows.shape[-1]) for rows in (found, real)))

    def measure(self, batch: ClipBatch, network: Any) -> Array:
        """Return a batch's features (b r d)."""
        rows = self.features(batch, network).cpu().numpy()
        num, extra = divmod(len(rows), len(batch.clips))
        if extra or not num:
            raise ValueError(f"{self.name}: {len(rows)} rows of {len(batch.clips)} clips")
        return rows.reshape(len(batch.clips), num, -1)

    def summarise(self, found: Array, real: Array, counts: Array | None) -> Metric:
        """Return the distance, absent for a single clip."""
        if min(len(found), len(real)) > 1:
            return self.distance(found, real)
        return AbsentMetric("a distance of one sample is none: take more clips")

    def uncertainty(self, found: Array, real: Array, seed: int) -> Uncertainty | None:
        """Return the interval and the distance at equal halves; None for fewer than four clips.

        Real clips beside themselves have no interval: their distance is zero by definition.
        """
        from magicdistill.models.metrics.resampling import halves_of, interval

        halves = halves_of(found, real, self.distance, seed)
        if halves is None:
            return None
        if not len(halves.draws):
            return Uncertainty(halves=halves.disjoint)
        whole = self.summarise(found, real, None)
        assert isinstance(whole, float)
        moved = whole + halves.draws - halves.draws.mean()
        return Uncertainty(interval(moved), halves.disjoint)


class Average(MetricBase):
    """The mean of the dimensions that count, which needs no measures of its own."""

    name: Literal["average"] = "average"
