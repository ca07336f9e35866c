"""Rows of the table, the size at which they are measured, and how memory and time are read."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from magicdistill.models.networks.backbones.base import Sample
from magicdistill.models.networks.backbones.hunyuan_video.shapes import HunyuanVideoConfig
from magicdistill.models.networks.config import AttentionKernel
from magicdistill.models.networks.presets import PRESETS


@dataclass(frozen=True)
class Row:
    """One thing that was measured; None where there is nothing to say."""

    what: str
    kernel: AttentionKernel | None = None
    forward_s: float | None = None
    backward_s: float | None = None
    saved_bytes: int | None = None
    """What the forward keeps for the backward, and its output."""
    peak_bytes: int | None = None
    operations: float | None = None
    """Of forward and backward, recomputation included."""
    note: str = ""
    problem: str | None = None

    @property
    def seconds(self) -> float:
        """Forward and backward."""
        return (self.forward_s or 0) + (self.backward_s or 0)


@dataclass(frozen=True)
class Bench:
    """Where and at which size."""

    device: torch.device
    dtype: torch.dtype
    block_preset: str
    presets: tuple[str, ...]
    """Whole ones to try, the largest first."""
    latents: tuple[int, int, int]
    """Latent frames, height and width."""
    kernels: tuple[AttentionKernel, ...]
    repeats: int
    folder: Path
    """Where runs and caches may be written."""
    is_tiny: bool

    @property
    def on_gpu(self) -> bool:
        """Whether it measures a GPU."""
        return self.device.type == "cuda"

    @property
    def block_shapes(self) -> HunyuanVideoConfig:
        """The shapes of the blocks that are timed on their own."""
        shapes = PRESETS[self.block_preset].transformer
        assert isinstance(shapes, HunyuanVideoConfig), "the blocks are those of HunyuanVideo"
        return shapes

    def sample(self, preset: str, **layers: int) -> Sample:
        """Return the planner's view of a sample; `layers` changes the numbers of blocks."""
        shapes = PRESETS[preset].transformer.model_copy(update=layers)
        return Sample(shapes, *self.latents, activation_bytes=self.dtype.itemsize)

    def randn(self, *shape: int) -> Tensor:
        """Return noise on the device."""
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def now_s(self) -> float:
        """Return the time, after the GPU has finished its work."""
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def memory(self) -> int:
        """Return the bytes that tensors take on the GPU; 0 without one."""
        return torch.cuda.memory_allocated() if self.on_gpu else 0

    def reset_peak(self) -> None:
        """Begin to look for the peak."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int | None:
        """Return the largest memory since `reset_peak`; None without a GPU."""
        return torch.cuda.max_memory_allocated() if self.on_gpu else None


Measure = Callable[[Bench], Iterator[Row]]


def timed(bench: Bench, call: Callable[[], object], repeats: int | None = None) -> float:
    """Return the median seconds of a call; the first round warms up."""
    found = []
    for _ in range((repeats or bench.repeats) + 1):
        start_s = bench.now_s()
        call()
        found.append(bench.now_s() - start_s)
    return statistics.median(found[1:])


@dataclass(frozen=True)
class Round:
    """One forward and backward."""

    forward_s: float
    backward_s: float
    saved_bytes: int
    peak_bytes: int


def one_round(bench: Bench, forward: Callable[[], Tensor]) -> Round:
    """Run forward and backward once."""
    before = bench.memory()
    bench.reset_peak()
    start_s = bench.now_s()
    out = forward()
    middle_s = bench.now_s()
    saved = bench.memory() - before
    out.backward(torch.ones_like(out))
    return Round(middle_s - start_s, bench.now_s() - middle_s, saved, bench.peak() or 0)


def median_round(bench: Bench, forward: Callable[[], Tensor], *, repeats: int) -> Round:
    """Return the medians of several rounds; the first warms up, unless it is the only one."""
    rounds = [one_round(bench, forward) for _ in range(repeats + 1 if repeats else 1)]
    kept = rounds[1:] or rounds
    return Round(
        statistics.median(r.forward_s for r in kept),
        statistics.median(r.backward_s for r in kept),
        int(statistics.median(r.saved_bytes for r in kept)),
        int(statistics.median(r.peak_bytes for r in kept)),
    )
