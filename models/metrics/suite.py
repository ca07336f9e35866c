"""All metrics of generated clips, in parts that merge: chunk by chunk, worker by worker."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from magicdistill.models.metrics import preprocessing
from magicdistill.models.metrics.columns.base import Clip, ClipBatch
from magicdistill.models.metrics.columns.registry import (
    METRICS,
    all_metrics,
    dimensions,
    measured,
)
from magicdistill.models.metrics.frechet import FrechetStatistics, save_arrays
from magicdistill.models.metrics.networks import load_network, networks_of
from magicdistill.models.metrics.results import AbsentMetric, Metric, average

NO_CLIPS = AbsentMetric("the protocol has pictures, and no real clips to compare with")
NOT_COUNTED = AbsentMetric("the protocol does not count it")


@dataclass(frozen=True)
class Measured:
    """What came of some clips: a score for each, and statistics over all."""

    scores: Mapping[str, np.ndarray]
    """(n,) by metric."""
    statistics: Mapping[str, FrechetStatistics]

    @classmethod
    def merged(cls, parts: Iterable["Measured"]) -> "Measured":
        """Return all clips' measures together; the parts have the same metrics."""
        found = list(parts)
        scores = {k: np.concatenate([part.scores[k] for part in found]) for k in found[0].scores}
        statistics = {
            k: FrechetStatistics.merged(part.statistics[k] for part in found)
            for k in found[0].statistics
        }
        return cls(scores, statistics)

    def of(self, metric: str) -> np.ndarray | FrechetStatistics | None:
        """Return what was measured for a metric, None where nothing was."""
        return self.scores.get(metric, self.statistics.get(metric))

    def save(self, path: Path) -> None:
        """Write an npz file, whole or not at all."""
        arrays = {f"scores/{name}": values for name, values in self.scores.items()}
        for name, statistics in self.statistics.items():
            arrays |= {f"{name}/{part}": values for part, values in statistics.arrays().items()}
        save_arrays(path, arrays)

    @classmethod
    def load(cls, path: Path) -> "Measured":
        """Read what `save` wrote."""
        groups: dict[str, dict[str, np.ndarray]] = {"scores": {}}
        with np.load(path) as stored:
            for name, values in stored.items():
                group, part = name.split("/")
                groups.setdefault(group, {})[part] = values
        scores = groups.pop("scores")
        return cls(scores, {k: FrechetStatistics.of_arrays(v) for k, v in groups.items()})


class MetricSuite:
    """Those of `metrics` whose networks are there; the others are absent with the reason."""

    def __init__(
        self,
        folder: Path | None,
        device: torch.device | str = "cpu",
        metrics: Collection[str] | None = None,
    ) -> None:
        """Load the networks of `metrics`, by default of all, from `folder`."""
        metrics = METRICS.names() if metrics is None else metrics
        self.metrics = measured(metrics)
        wanted = networks_of(metrics)
        self.networks = {network: load_network(network, folder, device) for network in wanted}

    @torch.no_grad()
    def measure(
        self, pixels: Float[Tensor, "b 3 t y x"], real: Float[Tensor, "b 3 s y x"], fps: float
    ) -> Measured:
        """Measure clips in [-1, 1] beside the real ones, or beside pictures of one frame.

        Raises ValueError for a clip without finite pixels.
        """
        if not pixels.isfinite().all():
            raise ValueError("the generator gave pixels that are no numbers")
        pairs = zip(preprocessing.to_frames(pixels), preprocessing.to_frames(real), strict=True)
        batch = ClipBatch(pixels, [Clip(frames, wanted, fps) for frames, wanted in pairs])
        scores: dict[str, np.ndarray] = {}
        statistics: dict[str, FrechetStatistics] = {}
        for metric in self.metrics:
            network = self.networks.get(metric.NETWORK) if metric.NETWORK else None
            values = None if isinstance(network, AbsentMetric) else metric.measure(batch, network)
            if isinstance(values, FrechetStatistics):
                statistics[metric.name] = values
            elif values is not None:
                scores[metric.name] = values
        return Measured(scores, statistics)


def reference(path: Path, measure: Callable[[], Measured]) -> Measured:
    """Return the real clips' measures kept at `path`; measure and keep them the first time."""
    if not path.exists():
        measure().save(path)
    return Measured.load(path)


def summarise(
    found: Measured,
    real: Measured | None,
    absent: Mapping[str, AbsentMetric],
    columns: Collection[str] | None = None,
    counting: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Metric]:
    """Return every metric of generated clips, in the order of METRICS.

    Args:
        found: of the generated clips.
        real: of the real ones, None where there are pictures alone.
        absent: what could not be measured.
        columns: what counts, by default all; `average` is over the dimensions among them.
        counting: which clips a score is the mean of, bool (n,) by metric; by default all.
    """
    columns = METRICS.names() if columns is None else columns
    metrics: dict[str, Metric] = dict.fromkeys(METRICS.names(), NOT_COUNTED)
    metrics |= {name: reason for name, reason in absent.items() if name in columns}
    for metric in all_metrics():
        values = found.of(metric.name)
        if metric.COMPARES and real is None:
            metrics[metric.name] = NO_CLIPS
        elif values is not None:
            counts = (counting or {}).get(metric.name)
            metrics[metric.name] = metric.summarise(values, real and real.of(metric.name), counts)
    counted = [name for name in dimensions() if name in columns]
    metrics["average"] = average({name: metrics[name] for name in counted})
    return {name: metrics[name] for name in METRICS.names()}
