"""The fastest layouts of a recipe on the GPUs that it has."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import get_args

from magicdistill.models.networks.config import Recompute
from magicdistill.platform.config.overrides import RecipeError
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.planning.plan import GIB, Change, Plan, changed, flags_of, plan

NUM_NODE_GPUS = 8
"""GPUs of a node, whose links alone are fast enough for a sequence group."""


@dataclass(frozen=True)
class Layout:
    """A way to lay the same batches out over the same GPUs."""

    change: Change
    """The fields that decide it, by dotted name."""
    made: Plan


def propose(made: Plan, count: int = 3) -> list[Layout]:
    """Return the fastest layouts that fit, at most `count`, the fastest first.

    They differ in what is recomputed, sequence parallelism and micro-batches; the number of GPUs
    and the batch stay. None is returned for CPUs, whose memory is not judged.
    """
    fitting = [layout for layout in _layouts(made) if layout.made.fits]
    return sorted(fitting, key=_cost)[:count]


def describe_proposals(made: Plan) -> Iterator[str]:
    """Yield a line for each layout, and which of them is the recipe's own."""
    layouts = propose(made)
    if not layouts:
        yield "no layout of recomputation, sequence groups and micro-batches fits on these GPUs"
        return
    yield "the fastest layouts that fit:"
    for layout in layouts:
        size = layout.made.gpu_bytes / GIB
        own = "  (the recipe's)" if _own(made.recipe, layout.change) else ""
        seconds = layout.made.seconds_per_cycle
        yield f"  {flags_of(layout.change)}  {seconds:.1f} s per cycle, {size:.1f} GiB{own}"


def _layouts(made: Plan) -> Iterator[Layout]:
    batch_size = made.recipe.schedule.batch_size
    divisors = [n for n in range(1, batch_size + 1) if batch_size % n == 0]
    sizes = [n for n in range(1, NUM_NODE_GPUS + 1) if NUM_NODE_GPUS % n == 0]
    for recompute, size, num_micro_batches in product(get_args(Recompute), sizes, divisors):
        change: Change = {
            "kernels.recompute_blocks": recompute,
            "cluster.sequence_parallel": size,
            "schedule.num_micro_batches": num_micro_batches,
        }
        try:
            yield Layout(change, plan(changed(made.recipe, change), mfu=made.mfu))
        except RecipeError:  # it does not divide, or blocks are compiled
            continue


def _cost(layout: Layout) -> tuple[float, float]:
    return layout.made.seconds_per_cycle or 0.0, layout.made.gpu_bytes


def _own(recipe: Recipe, change: Change) -> bool:
    return changed(recipe, change) == recipe
