"""All metrics of generated clips, in parts that merge: chunk by chunk, worker by worker."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from magicdistill.models.metrics import preprocessing, vbench, weight_files
from magicdistill.models.metrics.frechet import FrechetStatistics, save_arrays
from magicdistill.models.metrics.names import COMPARING, DIMENSIONS, METRICS, RATIOS
from magicdistill.models.metrics.networks import load_network
from magicdistill.models.metrics.proxies import ProxyVideoFeatures, flicker_proxy, motion
from magicdistill.models.metrics.results import AbsentMetric, Metric, average
from magicdistill.models.metrics.weight_files import MetricNetwork, networks_of

NO_CLIPS = AbsentMetric("the protocol has pictures, and no real clips to compare with")
NOT_COUNTED = AbsentMetric("the protocol does not count it")
NUM_FRAMES = 16
"""Frames that a network sees at once."""


@dataclass(frozen=True)
class Clip:
    """One generated clip beside the real one whose first frame it continues."""

    frames: UInt8[Tensor, "t 3 y x"]
    real: UInt8[Tensor, "s 3 y x"]
    """As long, or a picture alone."""
    fps: float


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
        metrics: Collection[str] = METRICS,
    ) -> None:
        wanted = networks_of(metrics)
        self.networks = {network: load_network(network, folder, device) for network in wanted}
        self.proxy = ProxyVideoFeatures().to(device)

    @torch.no_grad()
    def measure(
        self, pixels: Float[Tensor, "b 3 t y x"], real: Float[Tensor, "b 3 s y x"], fps: float
    ) -> Measured:
        """Measure clips in [-1, 1] beside the real ones, or beside pictures of one frame.

        Raises ValueError for a clip without finite pixels.
        """
        if not pixels.isfinite().all():
            raise ValueError("the generator gave pixels that are no numbers")
        clips = [
            Clip(frames, wanted, fps)
            for frames, wanted in zip(
                preprocessing.to_frames(pixels), preprocessing.to_frames(real), strict=True
            )
        ]
        rows = [self._scores(clip) for clip in clips]
        scores = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        scores["dynamic_degree_proxy"] = motion(pixels).cpu().numpy()
        scores["flicker_proxy"] = flicker_proxy(pixels).cpu().numpy()
        return Measured(scores, self._statistics(pixels, clips))

    def _scores(self, clip: Clip) -> dict[str, float]:
        found = {"temporal_flickering": vbench.temporal_flickering(clip.frames)}
        for network, score in SCORERS.items():
            module = self.networks.get(network)
            if isinstance(module, nn.Module):
                found |= score(module, clip)
        return found

    def _statistics(self, pixels: Tensor, clips: list[Clip]) -> dict[str, FrechetStatistics]:
        features = {"proxy_frechet_distance": self.proxy(pixels)}
        inception, i3d = map(self.networks.get, (weight_files.INCEPTION, weight_files.I3D))
        if isinstance(inception, nn.Module):
            features["fid"] = torch.cat([_by_frames(inception, clip.frames) for clip in clips])
        if isinstance(i3d, nn.Module):
            features["fvd"] = torch.cat([i3d(clip.frames[None]) for clip in clips])
        return {name: FrechetStatistics.of(rows.cpu().numpy()) for name, rows in features.items()}


def reference(path: Path, measure: Callable[[], Measured]) -> Measured:
    """Return the real clips' measures kept at `path`; measure and keep them the first time."""
    if not path.exists():
        measure().save(path)
    return Measured.load(path)


def summarise(
    found: Measured,
    real: Measured | None,
    absent: Mapping[str, AbsentMetric],
    columns: Collection[str] = METRICS,
    counting: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Metric]:
    """Return every metric of generated clips, in the order of METRICS.

    Args:
        found: of the generated clips.
        real: of the real ones, None where there are pictures alone.
        absent: what could not be measured.
        columns: what counts; `average` is over the dimensions among them.
        counting: which clips a score is the mean of, bool (n,) by metric; by default all.
    """
    metrics: dict[str, Metric] = dict.fromkeys(METRICS, NOT_COUNTED)
    metrics |= {name: reason for name, reason in absent.items() if name in columns}
    for name, values in found.scores.items():
        metrics[name] = _mean(values, (counting or {}).get(name))
    metrics |= dict.fromkeys(COMPARING, NO_CLIPS) if real is None else _compared(found, real)
    counted = [name for name in DIMENSIONS if name in columns]
    metrics["average"] = average({name: metrics[name] for name in counted})
    return {name: metrics[name] for name in METRICS}


def _mean(values: np.ndarray, counts: np.ndarray | None) -> Metric:
    chosen = values if counts is None else values[counts]
    return float(chosen.mean()) if len(chosen) else AbsentMetric("no clip counts for it")


def _compared(found: Measured, real: Measured) -> dict[str, Metric]:
    metrics: dict[str, Metric] = {}
    for name, statistics in found.statistics.items():
        enough = min(statistics.count, real.statistics[name].count) > 1
        few = AbsentMetric("a distance of one sample is none: take more clips")
        metrics[name] = statistics.distance(real.statistics[name]) if enough else few
    for name in RATIOS:
        metrics[name] = float(found.scores[name].mean() / real.scores[name].mean())
    return metrics


def _subject(dino: nn.Module, clip: Clip) -> dict[str, float]:
    features = _by_frames(lambda part: dino(preprocessing.for_subject(part)), clip.frames)
    image_and_frames = torch.cat([clip.real[:1], clip.frames])
    cropped = _by_frames(lambda part: dino(preprocessing.for_i2v_subject(part)), image_and_frames)
    return {
        "subject_consistency": vbench.subject_consistency(features),
        "i2v_subject": vbench.i2v_subject(cropped[1:], cropped[0]),
    }


def _aesthetics(network: nn.Module, clip: Clip) -> dict[str, float]:
    scores = _by_frames(lambda part: network(preprocessing.for_clip(part)), clip.frames)
    return {"aesthetic_quality": vbench.aesthetic_quality(scores)}


def _imaging(musiq: nn.Module, clip: Clip) -> dict[str, float]:
    images = (preprocessing.for_musiq(frame) for frame in clip.frames.split(1))
    scores = torch.stack([musiq(image).reshape(()) for image in images])
    return {"imaging_quality": vbench.imaging_quality(scores)}


def _dynamics(raft: nn.Module, clip: Clip) -> dict[str, float]:
    return {"dynamic_degree": vbench.dynamic_degree(clip.frames, clip.fps, raft)}


def _smoothness(amt: nn.Module, clip: Clip) -> dict[str, float]:
    return {"motion_smoothness": vbench.motion_smoothness(clip.frames, amt)}


def _lpips(lpips: nn.Module, clip: Clip) -> dict[str, float]:
    if len(clip.real) != len(clip.frames):
        return {}
    pairs = zip(clip.frames.split(NUM_FRAMES), clip.real.split(NUM_FRAMES), strict=True)
    distances = [lpips(a / 127.5 - 1, b / 127.5 - 1) for a, b in pairs]
    return {"lpips": float(torch.cat(distances).mean())}


SCORERS: dict[MetricNetwork, Callable[[nn.Module, Clip], dict[str, float]]] = {
    weight_files.DINO: _subject,
    weight_files.AMT: _smoothness,
    weight_files.RAFT: _dynamics,
    weight_files.AESTHETICS: _aesthetics,
    weight_files.MUSIQ: _imaging,
    weight_files.LPIPS: _lpips,
}


def _by_frames(network: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
    return torch.cat([network(part) for part in frames.split(NUM_FRAMES)])
