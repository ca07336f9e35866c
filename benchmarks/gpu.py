"""Time, memory and MFU of one GPU on the transformer's blocks and on a whole preset, without Ray.

Times one double-stream and one single-stream block of the 13B preset at 67,320 video tokens,
forward and backward, for each attention kernel, then forward and backward of the largest preset
that fits, its blocks recomputed. `jobs/plan.py --rates FILE` plans with the result.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers.models.transformers.transformer_hunyuan_video import (
    HunyuanVideoRotaryPosEmbed,
    HunyuanVideoSingleTransformerBlock,
    HunyuanVideoTransformerBlock,
)
from timing import write_result
from torch import Tensor, nn
from torch.nn.attention import current_flash_attention_impl, restore_flash_attention_impl

from magicdistill.models.methods.forward_passes import ForwardPass
from magicdistill.models.networks.attention import activate_flash3, set_kernels
from magicdistill.models.networks.backbones.base import Sample
from magicdistill.models.networks.backbones.hunyuan_video import HunyuanVideoConfig
from magicdistill.models.networks.backbones.joint_attention import JointAttention
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.config import AttentionKernel, KernelsConfig
from magicdistill.models.networks.presets import PRESETS
from magicdistill.models.networks.sequence_parallel import WHOLE_SEQUENCE
from magicdistill.models.networks.transformer import VelocityModel, build_transformer
from magicdistill.platform.config.sections import GpuName
from magicdistill.platform.planning.flops import operations
from magicdistill.platform.planning.gpu_rates import GIB, GPUS

BLOCKS = {"double": HunyuanVideoTransformerBlock, "single": HunyuanVideoSingleTransformerBlock}
KERNELS: tuple[AttentionKernel, ...] = get_args(AttentionKernel)
PORTRAIT = (34, 88, 90)
"""Latent frames, height and width of 67,320 video tokens (002 section 4)."""
TINY = (2, 8, 8)


@dataclass(frozen=True)
class Row:
    """One thing that was measured; None where there is nothing to say."""

    what: str
    kernel: AttentionKernel
    forward_s: float | None = None
    backward_s: float | None = None
    saved_bytes: int | None = None
    """What the forward keeps for the backward, and its output."""
    peak_bytes: int | None = None
    operations: float | None = None
    """Of forward and backward, recomputation included."""
    problem: str | None = None

    @property
    def seconds(self) -> float:
        """Forward and backward."""
        assert self.forward_s is not None and self.backward_s is not None
        return self.forward_s + self.backward_s


@dataclass(frozen=True)
class Bench:
    """Where and at which size."""

    device: torch.device
    dtype: torch.dtype
    block_preset: str
    presets: tuple[str, ...]
    """Whole ones to try, the largest first."""
    latents: tuple[int, int, int]
    repeats: int

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


def main() -> None:
    """Measure, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="A tiny size, on any device.")
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=KERNELS)
    parser.add_argument("--repeats", type=int, default=5, help="The table has medians.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    args = parser.parse_args()
    if not torch.cuda.is_available() and not args.tiny:
        sys.exit("benchmarks/gpu.py measures a CUDA GPU and finds none; --tiny runs it anywhere")
    bench = tiny_bench(args.repeats) if args.tiny else full_bench(args.repeats)
    rows = list(measure(bench, args.kernels))
    gpu = gpu_name()
    print(format_table(rows, gpu))
    speeds = rates(rows, bench)
    values = {
        "latents": bench.latents,
        "dtype": str(bench.dtype),
        "rows": [asdict(r) for r in rows],
    }
    if gpu is not None and not args.tiny:
        values["rates"] = {"gpu": gpu, "operations_per_s": speeds}
    write_result(args.out, values)
    print(f"written to {args.out}")


def full_bench(repeats: int) -> Bench:
    """Return the size of the papers."""
    presets = ("magic141-13b", "portrait-tiny")
    return Bench(torch.device("cuda"), torch.bfloat16, presets[0], presets, PORTRAIT, repeats)


def tiny_bench(repeats: int) -> Bench:
    """Return a size for tests; flash kernels want bf16 on a GPU."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    dtype = torch.bfloat16 if on_gpu else torch.float32
    return Bench(device, dtype, "portrait-tiny", ("portrait-tiny",), TINY, repeats)


def gpu_name() -> GpuName | None:
    """Return the planner's name of this GPU, None for others."""
    if not torch.cuda.is_available():
        return None
    words = torch.cuda.get_device_name().lower().replace("-", " ").split()
    return next((name for name in GPUS if name in words), None)


def measure(bench: Bench, kernels: tuple[AttentionKernel, ...]) -> Iterator[Row]:
    """Yield both blocks under each kernel, then the largest preset under the fastest kernel."""
    blocks: list[Row] = []
    for kernel in kernels:
        for kind in BLOCKS:
            blocks.append(
                attempt(f"{kind} block", kernel, lambda k=kind, a=kernel: block(bench, k, a))
            )
            yield blocks[-1]
    working = [row for row in blocks if row.problem is None]
    if not working:
        return
    fastest = min(working, key=lambda row: row.seconds).kernel
    for preset in bench.presets:
        row = attempt(preset, fastest, lambda name=preset: whole(bench, name, fastest))
        yield row
        if row.problem is None:
            return


def attempt(what: str, kernel: AttentionKernel, call: Callable[[], Row]) -> Row:
    """Measure, or report a kernel that is missing here and a size that does not fit."""
    try:
        if kernel == "flash3":
            activate_flash3()
        return call()
    except torch.OutOfMemoryError:
        return Row(what, kernel, problem="does not fit in this GPU's memory")
    except RuntimeError as error:
        return Row(what, kernel, problem=str(error).splitlines()[0])
    finally:
        if current_flash_attention_impl() is not None:
            restore_flash_attention_impl()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def block(bench: Bench, kind: str, kernel: AttentionKernel) -> Row:
    """Measure one block on its own."""
    shapes = bench.block_shapes
    heads, head_dim = shapes.num_attention_heads, shapes.attention_head_dim
    with bench.device:
        module = BLOCKS[kind](heads, head_dim, mlp_ratio=4.0).to(bench.dtype)
        grid = torch.empty(1, 1, *bench.latents)
        rotary = HunyuanVideoRotaryPosEmbed(shapes.patch[1], 1, list(shapes.rope_axes_dim))(grid)
    attention: Any = JointAttention(kernel, WHOLE_SEQUENCE)
    module.attn.set_processor(attention)
    counts = {"num_layers": int(kind == "double"), "num_single_layers": int(kind == "single")}
    sample = bench.sample(bench.block_preset, **counts)
    video = bench.randn(1, sample.video_tokens, sample.model_dim).requires_grad_()
    text = bench.randn(1, shapes.num_text_tokens, sample.model_dim).requires_grad_()
    embedding = bench.randn(1, sample.model_dim)

    def forward() -> Tensor:
        return torch.cat(module(video, text, embedding, None, rotary), dim=1)

    return timed_row(f"{kind} block", kernel, bench, module, forward, sample, recompute=False)


def whole(bench: Bench, preset: str, kernel: AttentionKernel) -> Row:
    """Measure a whole transformer, its blocks recomputed."""
    shapes = PRESETS[preset].transformer
    with torch.device("meta"):
        network = VelocityModel(build_transformer(shapes)).to(bench.dtype)
    network = network.to_empty(device=bench.device)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.02)
    set_kernels(network, KernelsConfig(attention=kernel, recompute_blocks=True))
    sample = bench.sample(preset)
    x_sigma = bench.randn(1, shapes.latent_channels, *bench.latents)
    conditions = Conditions(
        text=bench.randn(1, shapes.num_text_tokens, shapes.text_embed_dim),
        text_mask=torch.ones(1, shapes.num_text_tokens, dtype=torch.bool, device=bench.device),
        pooled=bench.randn(1, shapes.pooled_projection_dim),
        image_prior=x_sigma[:, :, :1],
    )
    sigma = torch.full((1,), 0.5, device=bench.device)

    def forward() -> Tensor:
        return network(x_sigma, sigma, conditions)

    return timed_row(preset, kernel, bench, network, forward, sample, recompute=True)


def timed_row(
    what: str,
    kernel: AttentionKernel,
    bench: Bench,
    module: nn.Module,
    forward: Callable[[], Tensor],
    sample: Sample,
    *,
    recompute: bool,
) -> Row:
    """Run forward and backward several times; the first round warms up."""
    rounds = [one_round(bench.device, module, forward) for _ in range(bench.repeats + 1)][1:]
    forward_s, backward_s, saved, peak = (statistics.median(c) for c in zip(*rounds, strict=True))
    on_gpu = bench.device.type == "cuda"
    return Row(
        what,
        kernel,
        forward_s,
        backward_s,
        int(saved) if on_gpu else None,
        int(peak) if on_gpu else None,
        operations(sample, ForwardPass("", "", "weights"), recompute=recompute),
    )


def one_round(
    device: torch.device, module: nn.Module, forward: Callable[[], Tensor]
) -> tuple[float, float, int, int]:
    """Return seconds of forward and backward, and bytes saved between and at the peak."""
    module.zero_grad(set_to_none=True)
    before = _reset_memory(device)
    start_s = _now_s(device)
    out = forward()
    middle_s = _now_s(device)
    saved = _memory(device) - before
    out.backward(torch.ones_like(out))
    end_s = _now_s(device)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return middle_s - start_s, end_s - middle_s, saved, peak


def _now_s(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _memory(device: torch.device) -> int:
    return torch.cuda.memory_allocated() if device.type == "cuda" else 0


def _reset_memory(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return _memory(device)


def rates(rows: list[Row], bench: Bench) -> dict[AttentionKernel, float]:
    """Return operations a second by kernel, both blocks in the numbers that the preset has."""
    shapes = bench.block_shapes
    counts = {"double block": shapes.num_layers, "single block": shapes.num_single_layers}
    found: dict[AttentionKernel, float] = {}
    for kernel in KERNELS:
        both = [r for r in rows if r.kernel == kernel and r.what in counts and r.operations]
        if len(both) == len(counts):
            done = sum(counts[row.what] * (row.operations or 0) for row in both)
            found[kernel] = done / sum(counts[row.what] * row.seconds for row in both)
    return found


def format_table(rows: list[Row], gpu: GpuName | None) -> str:
    """Return the rows as text; MFU counts recomputation as work."""
    head = ("forward ms", "backward ms", "saved GiB", "peak GiB", "TFLOP/s", "MFU")
    lines = [f"{'':16}{'kernel':>8}" + "".join(f"{name:>13}" for name in head)]
    peak = GPUS[gpu].operations_per_s if gpu else None
    for row in rows:
        start = f"{row.what:16}{row.kernel:>8}"
        if row.problem is not None:
            lines.append(f"{start}  {row.problem}")
            continue
        speed = (row.operations or 0) / row.seconds
        values = (
            (row.forward_s, 1e3, ".2f"),
            (row.backward_s, 1e3, ".2f"),
            (row.saved_bytes, 1 / GIB, ".2f"),
            (row.peak_bytes, 1 / GIB, ".2f"),
            (speed, 1e-12, ".3g"),
            (speed / peak if peak else None, 1, ".1%"),
        )
        cells = ("-" if value is None else f"{value * unit:{form}}" for value, unit, form in values)
        lines.append(start + "".join(f"{cell:>13}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
