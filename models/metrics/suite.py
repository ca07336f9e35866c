"""All metrics of generated clips, in parts that merge: chunk by chunk, worker by worker."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from magicdistill.models.metrics import preprocessing
from magicdistill.models.metrics.columns.base import Clip, ClipBatch, MetricBase
from magicdistill.models.metrics.columns.registry import (
    METRICS,
    all_metrics,
    dimensions,
    measured,
)
from magicdistill.models.metrics.frechet import save_arrays
from magicdistill.models.metrics.networks import load_network, networks_of
from magicdistill.models.metrics.resampling import interval
from magicdistill.models.metrics.results import AbsentMetric, Metric, Uncertainty, average

NO_CLIPS = AbsentMetric("the protocol has pictures, and no real clips to compare with")
NOT_COUNTED = AbsentMetric("the protocol does not count it")


@dataclass(frozen=True)
class Measured:
    """What came of n clips: a score for each, and rows of features of each.

    Features are kept as they are, and not the moments of a distance: they can be resampled, other
    distances take them too, and of a batch they are smaller.
    """

    scores: Mapping[str, np.ndarray]
    """(n,) by what was measured (`MetricBase.stored`)."""
    features: Mapping[str, np.ndarray]
    """(n r d) by what was measured."""

    def __post_init__(self) -> None:
        """Raise ValueError where scores or features are of fewer clips than others."""
        counts = {name: len(values) for name, values in {**self.scores, **self.features}.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"measures are of different numbers of clips: {counts}")

    @classmethod
    def merged(cls, parts: Iterable["Measured"]) -> "Measured":
        """Return all clips' measures together; the parts have the same metrics."""
        found = list(parts)
        scores = {k: np.concatenate([part.scores[k] for part in found]) for k in found[0].scores}
        features = {
            k: np.concatenate([part.features[k] for part in found]) for k in found[0].features
        }
        return cls(scores, features)

    def of(self, metric: MetricBase) -> np.ndarray | None:
        """Return what was measured for a metric, None where nothing was."""
        return self.scores.get(metric.stored, self.features.get(metric.stored))

    def save(self, path: Path) -> None:
        """Write an npz file, whole or not at all."""
        groups = {"scores": self.scores, "features": self.features}
        save_arrays(
            path, {f"{group}/{name}": v for group, vs in groups.items() for name, v in vs.items()}
        )

    @classmethod
    def load(cls, path: Path) -> "Measured":
        """Read what `save` wrote."""
        groups: dict[str, dict[str, np.ndarray]] = {"scores": {}, "features": {}}
        with np.load(path) as stored:
            for name, values in stored.items():
                group, part = name.split("/")
                groups[group][part] = values
        return cls(**groups)


class MetricSuite:
    """Those of `metrics` whose networks are there; the others are absent with the reason."""

    def __init__(
        self,
        folder: Path | None,
        device: torch.device | str = "cpu",
        metrics: Collection[str] | None = None,
        window: int | None = None,
    ) -> None:
        """Load the networks of `metrics`, by default of all, from `folder`.

        FVD and KVD see windows of `window` frames, by default whole clips.
        """
        self.window = window
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
        clips = [Clip(frames, wanted, fps) for frames, wanted in pairs]
        batch = ClipBatch(pixels, clips, self.window)
        scores: dict[str, np.ndarray] = {}
        features: dict[str, np.ndarray] = {}
        for metric in self.metrics:
            if metric.stored in features:
                continue
            network = self.networks.get(metric.NETWORK) if metric.NETWORK else None
            values = None if isinstance(network, AbsentMetric) else metric.measure(batch, network)
            if values is not None:
                (scores if values.ndim == 1 else features)[metric.stored] = values
        return Measured(scores, features)


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
        values = found.of(metric)
        if metric.COMPARES and real is None:
            metrics[metric.name] = NO_CLIPS
        elif metric.name not in columns and metric.NETWORK is not None:
            continue  # its features are there for another metric, which counts
        elif values is not None:
            counts = (counting or {}).get(metric.name)
            metrics[metric.name] = metric.summarise(values, real and real.of(metric), counts)
    counted = [name for name in dimensions() if name in columns]
    metrics["average"] = average({name: metrics[name] for name in counted})
    return {name: metrics[name] for name in METRICS.names()}


def uncertainties(
    found: Measured,
    real: Measured | None,
    metrics: Mapping[str, Metric],
    columns: Collection[str] | None = None,
    *,
    num_inputs: int,
    counting: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
) -> dict[str, Uncertainty]:
    """Return what stands beside those of `metrics`, of `summarise`, that are numbers.

    `found` has a video of each of the `num_inputs` inputs, then the next of each; `seed` is that of
    the resampling.
    """
    beside: dict[str, Uncertainty] = {}
    averaged: dict[str, np.ndarray] = {}
    for metric in all_metrics():
        values, truth = found.of(metric), real and real.of(metric)
        if values is None or isinstance(metrics[metric.name], AbsentMetric):
            continue
        counts = (counting or {}).get(metric.name)
        draws = metric.resamples(values, truth, counts, num_inputs, seed)
        own = metric.uncertainty(values, truth, seed)
        if draws is not None:
            own = Uncertainty(interval(draws))
            if metric.AVERAGED and (columns is None or metric.name in columns):
                averaged[metric.name] = draws
        beside |= {metric.name: own} if own is not None else {}
    if not isinstance(metrics["average"], AbsentMetric):
        beside["average"] = Uncertainty(interval(np.mean([*averaged.values()], axis=0)))
    return beside
