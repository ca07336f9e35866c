"""Metrics that compare generated clips with real ones."""

from functools import cache
from typing import Any, ClassVar, Literal

from magicdistill.models.metrics import weight_files
from magicdistill.models.metrics.columns.base import (
    Clip,
    ClipBatch,
    DistanceMetric,
    RatioMetric,
    ScoreMetric,
)


class Fid(DistanceMetric):
    """Frechet distance of frames in Inception's features (Heusel et al. 2017)."""

    name: Literal["fid"] = "fid"
    TITLE: ClassVar = "FID"
    DIGITS: ClassVar = 2
    NETWORK: ClassVar = weight_files.INCEPTION
    STORED: ClassVar = "inception"

    def features(self, batch: ClipBatch, network: Any) -> Any:
        """Return a row for each frame."""
        import torch

        from magicdistill.models.metrics.preprocessing import in_parts

        return torch.cat([in_parts(network, clip.frames) for clip in batch.clips])


class Fvd(DistanceMetric):
    """Frechet distance of clips in I3D's features (Unterthiner et al. 2018)."""

    name: Literal["fvd"] = "fvd"
    TITLE: ClassVar = "FVD"
    DIGITS: ClassVar = 2
    NETWORK: ClassVar = weight_files.I3D
    STORED: ClassVar = "i3d"

    def features(self, batch: ClipBatch, network: Any) -> Any:
        """Return a row for each window of a clip."""
        import torch

        from magicdistill.models.metrics.preprocessing import windows

        return torch.cat([network(windows(clip.frames, batch.window)) for clip in batch.clips])


class ContentDebiasedFvd(DistanceMetric):
    """Frechet distance of windows in VideoMAE's features (Ge et al. 2024), which answer to motion
    more than I3D's, trained to tell actions, do."""

    name: Literal["fvd_videomae"] = "fvd_videomae"
    TITLE: ClassVar = "CD-FVD"
    DIGITS: ClassVar = 2
    NETWORK: ClassVar = weight_files.VIDEOMAE

    def features(self, batch: ClipBatch, network: Any) -> Any:
        """Return a row for each 16 frames of a clip."""
        import torch

        from magicdistill.models.metrics.preprocessing import for_videomae

        return torch.cat([network(for_videomae(clip.frames)) for clip in batch.clips])


class Lpips(ScoreMetric):
    """Perceptual distance of each frame to the real one (Zhang et al. 2018)."""

    name: Literal["lpips"] = "lpips"
    TITLE: ClassVar = "LPIPS"
    ARROW: ClassVar = "↓"
    NETWORK: ClassVar = weight_files.LPIPS
    COMPARES: ClassVar = True

    def score(self, clip: Clip, network: Any) -> float | None:
        """Return the mean over frames; None where the real clip has another length."""
        import torch

        from magicdistill.models.metrics.preprocessing import NUM_FRAMES

        if len(clip.real) != len(clip.frames):
            return None
        pairs = zip(clip.frames.split(NUM_FRAMES), clip.real.split(NUM_FRAMES), strict=True)
        return float(torch.cat([network(a / 127.5 - 1, b / 127.5 - 1) for a, b in pairs]).mean())


class ProxyFrechetDistance(DistanceMetric):
    """Frechet distance of clips in a random network's features: a proxy for FVD."""

    name: Literal["proxy_frechet_distance"] = "proxy_frechet_distance"
    TITLE: ClassVar = "FD (proxy)"

    def features(self, batch: ClipBatch, network: Any) -> Any:
        """Return a row for each clip."""
        return _proxy_features(batch.pixels.device)(batch.pixels)


class DynamicDegreeProxy(RatioMetric):
    """Differences of neighbouring frames: a proxy for the dynamic degree."""

    name: Literal["dynamic_degree_proxy"] = "dynamic_degree_proxy"
    TITLE: ClassVar = "motion ÷ real (proxy)"

    def levels(self, pixels: Any) -> Any:
        """Return grey levels of 255."""
        from magicdistill.models.metrics.proxies import motion

        return motion(pixels)


class FlickerProxy(RatioMetric):
    """Differences of neighbouring frames where least moves: a proxy for flickering."""

    name: Literal["flicker_proxy"] = "flicker_proxy"
    TITLE: ClassVar = "flicker ÷ real (proxy)"

    def levels(self, pixels: Any) -> Any:
        """Return grey levels of 255."""
        from magicdistill.models.metrics.proxies import flicker_proxy

        return flicker_proxy(pixels)


@cache
def _proxy_features(device: Any) -> Any:
    from magicdistill.models.metrics.proxies import ProxyVideoFeatures

    return ProxyVideoFeatures().to(device)
