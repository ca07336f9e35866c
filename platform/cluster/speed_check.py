"""Measure every worker before a training begins, and name the slow ones.

One slow GPU, link or node slows all ranks, for they wait for each other, and nothing in a loss
curve shows it. The measurements take seconds on GPUs and milliseconds on processors.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from re import search
from statistics import median
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.cuda import nccl

from magicdistill.data_pipeline.io.whole_files import write_text
from magicdistill.platform.cluster import ranks
from magicdistill.platform.cluster.worker_failures import FinalError
from magicdistill.platform.config.sections import ClusterConfig
from magicdistill.platform.runs.run_directory import RunDirectory

REPEATS = 5
EFA = Path("/opt/amazon")
"""Where the installer of EFA puts its libraries and the list of its packages."""
DRIVER = Path("/proc/driver/nvidia/version")


class SlowWorkersError(FinalError):
    """Workers that are slower than `cluster.preflight` lets them be."""


class Speeds(NamedTuple):
    """What a rank did in a second; 0 where there is no other rank to exchange with."""

    matmul: float
    """Operations of matrix products, in bfloat16 on a GPU."""
    memory: float
    """Bytes read and written."""
    all_gather: float
    """Bytes received from the other ranks, which all receive the same."""
    all_to_all: float
    """Bytes received from the other ranks, each its own."""


UNITS = Speeds(1e12, 1e9, 1e9, 1e9)
"""Units of the table: TFLOP/s and GB/s."""
LEAST = {
    "a100": Speeds(156e12, 1.0e12, 10e9, 2e9),
    "h100": Speeds(490e12, 1.7e12, 50e9, 10e9),
    "h200": Speeds(490e12, 2.4e12, 50e9, 10e9),
    "b200": Speeds(1100e12, 4.0e12, 50e9, 10e9),
}
"""What a healthy GPU exceeds by far, by a part of its name: half of the data sheets' matmul and
memory; exchanges lie far above what sockets carry and below what EFA or NVLink do. Our own."""


def check_workers(
    run: RunDirectory, config: ClusterConfig, nodes: Sequence[str], device: torch.device | str
) -> None:
    """Measure all ranks, log them as a table and keep the versions; every rank calls it.

    `nodes` are those of the ranks. Raises SlowWorkersError where `cluster.preflight` refuses slow
    workers, on the first rank (OtherRankError on the others), and what a broken GPU raises.
    """
    if config.preflight.action == "off":
        return
    speeds = ranks.of_all(measure(config, device))
    found = ranks.of_all(versions())
    ranks.first_succeeds(lambda: _tell(run, config, nodes, speeds, found))


def _tell(
    run: RunDirectory,
    config: ClusterConfig,
    nodes: Sequence[str],
    speeds: Sequence[Speeds],
    found: Sequence[dict[str, str]],
) -> None:
    """Log and judge what the ranks have measured, and the versions that they have found."""
    run.store_versions(found[0])
    write_text(run.preflight_path, "\n".join(table(speeds, nodes)) + "\n")
    for line in (*by_node(speeds, nodes), *unlike(found, nodes)):
        run.say(line)
    run.say("versions  " + ", ".join(f"{name} {number}" for name, number in found[0].items()))
    if slow := list(slow_ranks(speeds, nodes, least_of(found[0]["GPU"]), _slow_share(config))):
        if config.preflight.action == "refuse":
            raise SlowWorkersError("; ".join(slow))
        for line in slow:
            run.say(f"warning: {line}")


def measure(config: ClusterConfig, device: torch.device | str) -> Speeds:
    """Measure this rank; every rank calls it. Raises ArithmeticError where a product is wrong."""
    preflight, on_gpu = config.preflight, torch.device(device).type == "cuda"
    size = preflight.matmul_size or (8192 if on_gpu else 128)
    num_bytes = (preflight.exchange_mib or (1024 if on_gpu else 1)) << 20
    world = ranks.world_size()
    ones = torch.ones(size, size, device=device, dtype=torch.bfloat16 if on_gpu else torch.float32)
    if not bool((ones @ ones == size).all()):
        raise ArithmeticError(f"{device} multiplies matrices wrongly: replace it")
    source = torch.zeros(num_bytes // world * world, dtype=torch.uint8, device=device)
    target, received = torch.empty_like(source), len(source) * (world - 1) / world
    speeds = Speeds(
        _per_second(lambda: ones @ ones, 2 * size**3, on_gpu),
        _per_second(lambda: target.copy_(source), 2 * len(source), on_gpu),
        _per_second(lambda: _gather(source, target, world), received, on_gpu),
        _per_second(lambda: _exchange(source, target), received, on_gpu),
    )
    if on_gpu:
        del ones, source, target
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return speeds


def _per_second(action: Callable[[], object], amount: float, on_gpu: bool) -> float:
    """Return how much of something is done in a second, from the second time on."""
    action()
    start_s = _now(on_gpu)
    for _ in range(REPEATS):
        action()
    return REPEATS * amount / (_now(on_gpu) - start_s)


def _now(on_gpu: bool) -> float:
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter()


def _gather(source: Tensor, target: Tensor, world: int) -> None:
    if world > 1:
        dist.all_gather_into_tensor(target, source[: len(source) // world])


def _exchange(source: Tensor, target: Tensor) -> None:
    if ranks.world_size() > 1:
        dist.all_to_all_single(target, source)


def slow_ranks(
    speeds: Sequence[Speeds], nodes: Sequence[str], least: Speeds, share: float
) -> Iterator[str]:
    """Yield a sentence for each measurement with ranks under `share` of the median or `least`."""
    for name, unit, floor in zip(Speeds._fields, UNITS, least, strict=True):
        values = [getattr(one, name) for one in speeds]
        middle = median(values)
        limit = max(share * middle, floor if middle else 0)
        if slow := [
            f"rank {rank} on {nodes[rank]} has {value / unit:.3g}"
            for rank, value in enumerate(values)
            if value < limit
        ]:
            yield (
                f"{name} is slow: {', '.join(slow)}, of a median of {middle / unit:.3g} and at "
                f"least {limit / unit:.3g} {_unit(unit)} (cluster.preflight): replace the node, or "
                "look at its clocks, links and other programs"
            )


def least_of(gpu: str) -> Speeds:
    """Return the least speeds of a GPU by its name; 0 for one that has none."""
    return next((one for name, one in LEAST.items() if name in gpu.lower()), Speeds(0, 0, 0, 0))


def by_node(speeds: Sequence[Speeds], nodes: Sequence[str]) -> Iterator[str]:
    """Yield a line for each node, with the least and the most of its ranks."""
    for node, group in groupby(range(len(nodes)), key=nodes.__getitem__):
        own = [speeds[rank] for rank in group]
        parts = [
            f"{name} {min(values) / unit:.3g} to {max(values) / unit:.3g} {_unit(unit)}"
            for name, unit, values in zip(
                Speeds._fields, UNITS, zip(*own, strict=True), strict=True
            )
            if any(values)
        ]
        yield f"node {node}: {', '.join(parts)}"


def table(speeds: Sequence[Speeds], nodes: Sequence[str]) -> Iterator[str]:
    """Yield a line for each rank, in columns."""
    titles = [f"{name} {_unit(unit)}" for name, unit in zip(Speeds._fields, UNITS, strict=True)]
    widths = [len(title) for title in titles]
    yield "rank  " + "  ".join(titles) + "  node"
    for rank, (own, node) in enumerate(zip(speeds, nodes, strict=True)):
        cells = (
            f"{value / unit:>{width}.4g}"
            for value, unit, width in zip(own, UNITS, widths, strict=True)
        )
        yield f"{rank:>4}  {'  '.join(cells)}  {node}"


def unlike(found: Sequence[dict[str, str]], nodes: Sequence[str]) -> Iterator[str]:
    """Yield a warning for each version in which a node differs from the first rank's."""
    for name, wanted in found[0].items():
        other = {nodes[rank]: own[name] for rank, own in enumerate(found) if own[name] != wanted}
        for node, number in other.items():
            yield f"warning: node {node} has {name} {number}, and {nodes[0]} has {wanted}"


def versions() -> dict[str, str]:
    """Return the versions of what computes and communicates on this node; `none` is not there."""
    has_gpu = torch.cuda.is_available()
    numbers = nccl.version() if has_gpu else ()
    return {
        "GPU": torch.cuda.get_device_name() if has_gpu else "none",
        "driver": _found_in(DRIVER, r"Module\s+(?:for \S+\s+)?(\d[\d.]+)"),
        "CUDA": torch.version.cuda or "none",
        "NCCL": ".".join(map(str, numbers)) or "none",
        "EFA": _found_in(EFA / "efa_installed_packages", r"EFA installer version: (\S+)"),
        "EFA plugin": next((p.name for p in EFA.glob("ofi-nccl/lib*/**/libnccl-net*.so")), "none"),
        **{name: version(name) for name in ("torch", "deepspeed", "ray")},
    }


def _found_in(file: Path, pattern: str) -> str:
    try:
        found = search(pattern, file.read_text())
    except OSError:
        return "none"
    return found[1] if found else "none"


def _unit(unit: float) -> str:
    return "TFLOP/s" if unit == UNITS.matmul else "GB/s"


def _slow_share(config: ClusterConfig) -> float:
    """Return the share of the median that is slow; processors are shared with other programs."""
    return config.preflight.slow_share or (0.7 if config.uses_gpus else 0.01)
