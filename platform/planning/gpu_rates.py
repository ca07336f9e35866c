"""How fast GPUs and their networks compute and exchange: published, estimated or measured.

Attention, forward and backward, in 16-bit numbers at a head width of 128 and 16k tokens without a
mask, on an H100: figures 5 and 6 of FlashAttention-3 (arXiv 2407.08608), which compares
FlashAttention-2 (torch's own flash kernel), cuDNN and FlashAttention-3. On an A100: 73 % and 63 %
of the peak, the largest shares that FlashAttention-2 (arXiv 2307.08691) reports. All other rates
are estimated: those of an H200 are an H100's, whose chip it has; those of a B200 are guesses;
products of matrices reach 65 % of the peak, other operations 80 % of the memory's bandwidth, and
collectives 80 % of that of links and network cards. `make gpu` measures all but the last.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import PositiveFloat, ValidationError

from magicdistill.models.config import Config
from magicdistill.models.networks.config import AttentionKernel, KernelChoice
from magicdistill.platform.config.overrides import RecipeError
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.config.sections import GpuName

GIB = 2**30
LINEAR_SHARE, MEMORY_SHARE, LINK_SHARE = 0.65, 0.8, 0.8
"""What products of matrices, other operations and collectives reach of the peaks. Estimated."""


class Gpu(NamedTuple):
    """One kind of accelerator in a common server of eight."""

    memory_bytes: float
    operations_per_s: float
    """Peak rate in bf16 without sparsity."""
    host_bytes: float
    """The server's memory divided by its GPUs."""
    memory_bytes_per_s: float
    """Peak bandwidth of its memory."""
    link_bytes_per_s: float
    """What its NVLink sends, and receives at the same time."""
    node_bytes_per_s: float
    """The same of all network cards of the server: EFA on p4d, p5, p5en and p6-b200."""


GPUS: dict[GpuName, Gpu] = {
    "a100": Gpu(79.2 * GIB, 312e12, 140 * GIB, 2.04e12, 300e9, 50e9),
    "h100": Gpu(79.6 * GIB, 989e12, 250 * GIB, 3.35e12, 450e9, 400e9),
    "h200": Gpu(140.4 * GIB, 989e12, 250 * GIB, 4.8e12, 450e9, 400e9),
    "b200": Gpu(178.3 * GIB, 2250e12, 250 * GIB, 8e12, 900e9, 400e9),
}
GPUS_PER_NODE = 8
LEFT_BY_MAKE = Path(__file__).parents[2] / "benchmarks/results/gpu.json"


class Direction(NamedTuple):
    """Operations a second of attention; a backward has 2.5 times the operations of a forward."""

    forward: float
    backward: float


HOPPER: dict[AttentionKernel, Direction] = {
    "sdpa": Direction(370e12, 322e12),
    "flash": Direction(370e12, 322e12),
    "cudnn": Direction(595e12, 516e12),
    "flash3": Direction(648e12, 561e12),
}
AMPERE, BLACKWELL = Direction(227e12, 196e12), Direction(400e12, 350e12)
ATTENTION: dict[GpuName, dict[AttentionKernel, Direction]] = {
    "a100": {"sdpa": AMPERE, "flash": AMPERE, "cudnn": AMPERE},
    "h100": HOPPER,
    "h200": HOPPER,
    "b200": {"sdpa": BLACKWELL, "flash": BLACKWELL, "cudnn": Direction(1200e12, 900e12)},
}
"""By kernel; torch's own choice (`sdpa`) is its flash kernel."""
AUTO: dict[GpuName, AttentionKernel] = {
    "a100": "flash",
    "h100": "cudnn",
    "h200": "cudnn",
    "b200": "cudnn",
}
"""The kernel that plans take for `auto`: the fastest that comes with torch."""


class Rates(NamedTuple):
    """How fast one GPU computes."""

    attention: Direction
    linear: float
    """Operations a second of all other products of matrices."""
    memory: float
    """Bytes a second that all other operations read and write."""
    source: str
    """Where they are from, in words."""


class MeasuredRates(Config):
    """What `benchmarks/gpu.py` measured on one GPU."""

    gpu: GpuName
    attention: dict[AttentionKernel, Direction]
    linear: PositiveFloat
    memory: PositiveFloat


def planned_kernel(kernel: KernelChoice, gpu: GpuName) -> AttentionKernel:
    """Return the kernel that a plan counts with.

    Raises RecipeError where the GPU has no such kernel.
    """
    chosen = AUTO[gpu] if kernel == "auto" else kernel
    if chosen not in ATTENTION[gpu]:
        raise RecipeError(
            f"kernels.attention {kernel}: there is none for {gpu}; give auto or one of "
            f"{', '.join(ATTENTION[gpu])}"
        )
    return chosen


def published_rates(recipe: Recipe) -> Rates:
    """Return the published or estimated rates of the recipe's kernel on its GPUs."""
    name = recipe.cluster.gpu
    kernel, gpu = planned_kernel(recipe.kernels.attention, name), GPUS[name]
    return Rates(
        ATTENTION[name][kernel],
        LINEAR_SHARE * gpu.operations_per_s,
        MEMORY_SHARE * gpu.memory_bytes_per_s,
        f"published and estimated rates of {kernel} on {name}",
    )


def measured_rates(file: Path, recipe: Recipe) -> Rates:
    """Return the rates of the recipe's kernel in a result of the benchmark.

    Raises RecipeError where the file has no rates, none of that kernel, or those of a GPU with
    another peak.
    """
    try:
        content: Any = json.loads(file.read_text())
        found = MeasuredRates.model_validate(content.get("rates"))
    except (OSError, ValueError, AttributeError, ValidationError) as error:
        raise RecipeError(
            f"--rates {file}: no rates of a known GPU ({error}); make them there with make gpu"
        ) from None
    name = recipe.cluster.gpu
    if GPUS[found.gpu].operations_per_s != GPUS[name].operations_per_s:
        raise RecipeError(
            f"--rates {file}: measured on {found.gpu}, and cluster.gpu {name} has another peak; "
            f"measure there, or plan for --cluster.gpu {found.gpu}"
        )
    kernel = recipe.kernels.attention
    if kernel == "auto":
        kernel = max(found.attention, key=lambda name: found.attention[name].forward)
    if kernel not in found.attention:
        raise RecipeError(
            f"--rates {file}: kernels.attention {kernel} was not measured; there are "
            f"{', '.join(found.attention)}"
        )
    bandwidths = GPUS[name].memory_bytes_per_s / GPUS[found.gpu].memory_bytes_per_s
    source = f"rates of {kernel} on {found.gpu} that were measured ({file})"
    return Rates(found.attention[kernel], found.linear, found.memory * bandwidths, source)


def find_rates(file: Path | None, recipe: Recipe) -> Rates:
    """Return the rates of a result, else of one that `make gpu` left, else the published ones.

    Raises RecipeError where a given file says nothing about the recipe; one that was left is then
    passed over.
    """
    if file is not None:
        return measured_rates(file, recipe)
    try:
        return measured_rates(LEFT_BY_MAKE, recipe)
    except RecipeError:
        return published_rates(recipe)


class Network(NamedTuple):
    """How fast the GPUs of a job exchange, in servers of eight.

    An exchange takes its latency and the time of the slower of two ways: every GPU's link, and
    every server's network cards, through which all that its eight GPUs do not have yet comes in
    once (rings of NCCL, one through every card).
    """

    num_ranks: int
    link_bytes_per_s: float
    node_bytes_per_s: float
    launch_s: float = 10e-6
    hop_s: float = 1.5e-6
    """Latency of each step of a ring inside a server. Estimated."""
    node_hop_s: float = 10e-6
    """The same from one server to the next. Estimated."""

    @property
    def num_nodes(self) -> int:
        """Number of servers."""
        return math.ceil(self.num_ranks / GPUS_PER_NODE)

    def gather_s(self, num_bytes: float) -> float:
        """Return the seconds in which every rank gathers so many bytes, or reduces and scatters."""
        ranks, nodes = self.num_ranks, self.num_nodes
        if ranks == 1:
            return 0.0
        inside = num_bytes * (ranks - 1) / ranks / self.link_bytes_per_s
        between = num_bytes * (nodes - 1) / nodes / self.node_bytes_per_s
        crossings = nodes if nodes > 1 else 0
        hops = (ranks - 1 - crossings) * self.hop_s + crossings * self.node_hop_s
        return self.launch_s + hops + max(inside, between)

    def exchange_s(self, num_bytes: float, group: int) -> float:
        """Return the seconds in which each rank of a sequence group sends so many bytes."""
        speed = self.link_bytes_per_s
        if group > GPUS_PER_NODE:
            speed = min(speed, self.node_bytes_per_s / GPUS_PER_NODE)
        return self.launch_s + num_bytes / speed


def network_of(gpu: GpuName, num_ranks: int) -> Network:
    """Return the network of so many ranks on servers with such GPUs."""
    found = GPUS[gpu]
    speeds = (LINK_SHARE * found.link_bytes_per_s, LINK_SHARE * found.node_bytes_per_s)
    return Network(num_ranks, *speeds)
