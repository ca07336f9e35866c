"""Kernel distances: unbiased where Frechet distances of few clips are mostly bias."""

from dataclasses import replace
from typing import Any, ClassVar, Literal

from magicdistill.models.metrics import weight_files
from magicdistill.models.metrics.columns.base import Array, ClipBatch, DistanceMetric
from magicdistill.models.metrics.columns.comparisons import Fid, Fvd
from magicdistill.models.metrics.results import AbsentMetric, Metric, Uncertainty


class KernelDistance(DistanceMetric):
    """An unbiased squared maximum mean discrepancy, under the polynomial kernel unless `kernel` is
    another; the mean over subsets where there are more rows than one subset has."""

    SCALE: ClassVar[float] = 1.0
    """What the estimate is multiplied by."""

    def kernel(self, x: Array, y: Array) -> Array:
        """Return the kernels (n, m) of rows (n, d) and (m, d)."""
        from magicdistill.models.metrics.kernel_distance import polynomial

        return polynomial(x, y)

    def distance(self, found: Array, real: Array) -> float:
        """Return the estimate on all rows."""
        from magicdistill.models.metrics.kernel_distance import squared_mmd

        return self.SCALE * squared_mmd(found, real, self.kernel)

    def summarise(self, found: Array, real: Array, counts: Array | None) -> Metric:
        """Return the mean estimate, absent for a single clip. Clips beside themselves have 0: an
        estimate would count the kernel of each with itself on one side alone."""
        if min(len(found), len(real)) < 2:
            return AbsentMetric("a distance of one sample is none: take more clips")
        if found.shape == real.shape and (found == real).all():
            return 0.0
        return float(self._estimates(found, real).mean())

    def uncertainty(self, found: Array, real: Array, seed: int) -> Uncertainty | None:
        """Return the spread over subsets as well, where there are several."""
        beside = super().uncertainty(found, real, seed)
        if beside is None or found is real:
            return beside
        estimates = self._estimates(found, real)
        return replace(beside, subset_std=float(estimates.std())) if len(estimates) > 1 else beside

    def _estimates(self, found: Array, real: Array) -> Array:
        from magicdistill.models.metrics.kernel_distance import subset_estimates

        return self.SCALE * subset_estimates(found, real, self.kernel)


class Kid(KernelDistance):
    """Kernel distance of frames in Inception's features (Binkowski et al. 2018)."""

    name: Literal["kid"] = "kid"
    TITLE: ClassVar = "KID"
    NETWORK: ClassVar = Fid.NETWORK
    STORED: ClassVar = Fid.STORED

    def features(self, batch: ClipBatch, network: Any) -> Any:
        """Return FID's features."""
        return Fid().features(batch, network)


class Kvd(KernelDistance):
    """Kernel distance of clips in I3D's features (Unterthiner et al. 2018)."""

    name: Literal["kvd"] = "kvd"
    TITLE: ClassVar = "KVD"
    NETWORK: ClassVar = Fvd.NETWORK
    STORED: ClassVar = Fvd.STORED

    def features(self, batch: ClipBatch, network: Any) -> Any:
        """Return FVD's features."""
        return Fvd().features(batch, network)


class Cmmd(KernelDistance):
    """Kernel distance of frames in CLIP's embeddings, Gaussian of width 10, times 1000 (Jayasumana
    et al. 2024)."""

    name: Literal["cmmd"] = "cmmd"
    TITLE: ClassVar = "CMMD"
    NETWORK: ClassVar = weight_files.CLIP
    SCALE: ClassVar = 1000.0

    def kernel(self, x: Array, y: Array) -> Array:
        """Return Gaussian kernels."""
        from magicdistill.models.metrics.kernel_distance import gaussian

        return gaussian(x, y)

    def features(self, batch: ClipBatch, network: Any) -> Any:
        """Return a row of length 1 for each frame."""
        import torch

        from magicdistill.models.metrics.preprocessing import for_cmmd, in_parts

        frames = (clip.frames for clip in batch.clips)
        return torch.cat([in_parts(lambda part: network(for_cmmd(part)), f) for f in frames])
