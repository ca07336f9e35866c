"""Everything that only a GPU can show, on one GPU in at most eight minutes: `make gpu`.

Kernels of attention and whether they agree, blocks of the 13B preset at 67,320 video tokens, a
compiled block, the largest preset that fits, three cycles of both engines with memory against
plan, the losses of portrait-tiny against a processor's, pairs, decoding, offload, stages of the
data pipeline, and a run under Ray. Each part has a time of its own; what fails becomes a row, and
the rest goes on. `jobs/plan.py` plans with the result.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from gpu_parts import blocks, runs, stages
from gpu_parts.results import Bench, Measure, Row
from timing import write_result

from magicdistill.models.networks.config import AttentionKernel
from magicdistill.platform.config.sections import GpuName
from magicdistill.platform.planning.flops import ATTENTION_BACKWARD
from magicdistill.platform.planning.gpu_rates import GIB, GPUS

KERNELS: tuple[AttentionKernel, ...] = get_args(AttentionKernel)
PORTRAIT = (34, 88, 90)
"""Latent frames, height and width of 67,320 video tokens (002 section 4)."""
TINY = (2, 8, 8)
SLOW = 10
"""How many times the limits a tiny size may take, on processors that others use."""


class Part(NamedTuple):
    """Something to measure, and the seconds that it may take."""

    measure: Measure
    limit_s: int


PARTS = {
    "kernels": Part(blocks.measure_kernels, 40),
    "rates": Part(blocks.measure_rates, 15),
    "blocks": Part(blocks.measure_blocks, 75),
    "compile": Part(blocks.measure_compiled, 45),
    "whole": Part(blocks.measure_whole, 60),
    "training": Part(runs.measure_training, 65),
    "losses": Part(runs.measure_losses, 25),
    "pairs": Part(runs.measure_pairs, 15),
    "vae": Part(runs.measure_vae, 35),
    "offload": Part(runs.measure_offload, 10),
    "stages": Part(stages.measure_stages, 30),
    "jobs": Part(runs.measure_jobs, 65),
}
"""In order; all limits together are eight minutes."""
WITHOUT_RAY = tuple(PARTS)[:-1]
CUDA_PATHS = {
    "models/networks/attention.py": "kernels",
    "models/profiling.py": "losses",
    "platform/data/noise_data_pairs.py": "pairs",
    "platform/inference/clip_generator.py": "pairs",
    "platform/inference/held_out_sampling.py": "pairs",
    "platform/training/checkpoint_evaluator.py": "jobs",
    "platform/inference/sample_video.py": "jobs",
    "data_pipeline/stages/encode.py": "jobs",
    "platform/cluster/speed_check.py": "jobs",
    "platform/training/stragglers.py": "jobs",
    "platform/cluster/worker_failures.py": "stages",
    "platform/inference/web_page.py": "stages",
    "platform/inference/first_frames.py": "stages",
    "data_pipeline/scorers/embedding.py": "stages",
    "data_pipeline/captioning/local_model.py": "stages",
    "data_pipeline/stages/embed.py": "stages",
    "data_pipeline/stages/transnet.py": "stages",
    "data_pipeline/stages/run_scorers.py": "stages",
    "data_pipeline/maintenance/reconstruction.py": "stages",
}
"""Files that name CUDA, and the part that runs them on the GPU."""


def main() -> None:
    """Measure, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="A tiny size, on any device.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=tuple(PARTS))
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=KERNELS)
    parser.add_argument("--repeats", type=int, default=3, help="The table has medians.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    args = parser.parse_args()
    if not torch.cuda.is_available() and not args.tiny:
        print("make gpu measures a CUDA GPU and finds none; --tiny runs anywhere", file=sys.stderr)
        sys.exit(2)
    begun_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        bench = make_bench(Path(folder), tuple(args.kernels), args.repeats, tiny=args.tiny)
        patience = SLOW if args.tiny else 1
        found = {
            name: list(
                rows_of(name, Part(PARTS[name].measure, patience * PARTS[name].limit_s), bench)
            )
            for name in args.parts
        }
    gpu = gpu_name()
    print(format_table(found, gpu))
    rows = [{"part": part} | asdict(row) for part, rows in found.items() for row in rows]
    values: dict[str, Any] = {
        "latents": bench.latents,
        "dtype": str(bench.dtype),
        "seconds": time.monotonic() - begun_s,
        "rows": rows,
        "cuda_paths": CUDA_PATHS,
    }
    if gpu is not None and not args.tiny and (rates := rates_of(found)):
        values["rates"] = {"gpu": gpu} | rates
    write_result(args.out, values)
    print(f"written to {args.out} after {values['seconds']:.0f} s")


def make_bench(
    folder: Path, kernels: tuple[AttentionKernel, ...], repeats: int, *, tiny: bool
) -> Bench:
    """Return the size of the papers, or a tiny one for tests; flash kernels want bf16 on a GPU."""
    on_gpu = torch.cuda.is_available()
    return Bench(
        device=torch.device("cuda" if on_gpu else "cpu"),
        dtype=torch.bfloat16 if on_gpu else torch.float32,
        block_preset="portrait-tiny" if tiny else "magic141-13b",
        presets=("portrait-tiny",) if tiny else ("magic141-13b", "portrait-tiny"),
        latents=TINY if tiny else PORTRAIT,
        kernels=kernels,
        repeats=repeats,
        folder=folder,
        is_tiny=tiny,
    )


def gpu_name() -> GpuName | None:
    """Return the planner's name of this GPU, None for others."""
    if not torch.cuda.is_available():
        return None
    words = torch.cuda.get_device_name().lower().replace("-", " ").split()
    return next((name for name in GPUS if name in words), None)


def rows_of(name: str, part: Part, bench: Bench) -> Iterator[Row]:
    """Yield the rows of a part within its time; whatever it fails with becomes the last row."""
    print(f"{name}: up to {part.limit_s} s", file=sys.stderr)
    try:
        with blocks.cleaned_up(), within(part.limit_s):
            yield from part.measure(bench)
    except Exception as error:
        yield Row(name, problem=f"{type(error).__name__}: {' '.join(str(error).split())}")


@contextmanager
def within(limit_s: int) -> Iterator[None]:
    """Raise TimeoutError in the body once the time is up."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not through after {limit_s} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit_s)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def rates_of(found: dict[str, list[Row]]) -> dict[str, Any]:
    """Return what plans need: rates of attention by kernel and direction, and of the rest."""
    attention: dict[str, tuple[float, float]] = {}
    for row in found.get("kernels", []):
        if row.problem is None and row.kernel and row.operations:
            forward = row.operations / (1 + ATTENTION_BACKWARD)
            assert row.forward_s and row.backward_s
            backward = ATTENTION_BACKWARD * forward
            attention[row.kernel] = (forward / row.forward_s, backward / row.backward_s)
    others = {row.what: row for row in found.get("rates", []) if row.problem is None}
    linear, memory = others.get(blocks.LINEAR), others.get(blocks.MEMORY)
    if not attention or linear is None or memory is None:
        return {}
    assert linear.operations
    return {
        "attention": attention,
        "linear": linear.operations / linear.seconds,
        "memory": float(memory.note.split()[0]) * 1e12,
    }


def format_table(found: dict[str, list[Row]], gpu: GpuName | None) -> str:
    """Return the rows as text; MFU counts recomputation as work."""
    head = ("forward ms", "backward ms", "saved GiB", "peak GiB", "TFLOP/s", "MFU")
    lines = [f"{'':32}{'kernel':>8}" + "".join(f"{name:>12}" for name in head)]
    peak = GPUS[gpu].operations_per_s if gpu else None
    for row in (row for rows in found.values() for row in rows):
        start = f"{row.what:32}{row.kernel or '':>8}"
        if row.problem is not None:
            lines.append(f"{start}  FAILED: {row.problem}")
            continue
        speed = row.operations / row.seconds if row.operations else None
        values = (
            (row.forward_s, 1e3, ".2f"),
            (row.backward_s, 1e3, ".2f"),
            (row.saved_bytes, 1 / GIB, ".2f"),
            (row.peak_bytes, 1 / GIB, ".2f"),
            (speed, 1e-12, ".3g"),
            (speed / peak if peak and speed else None, 1, ".1%"),
        )
        cells = ("-" if value is None else f"{value * unit:{form}}" for value, unit, form in values)
        lines.append(start + "".join(f"{cell:>12}" for cell in cells) + f"  {row.note}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
