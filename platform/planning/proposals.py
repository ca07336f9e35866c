"""The fastest layouts of a recipe on the GPUs that it has."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, get_args

from magicdistill.models.networks.config import Recompute
from magicdistill.platform.config.overrides import RecipeError
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.config.sections import DeepSpeedEngineConfig
from magicdistill.platform.planning.plan import GIB, Change, Plan, changed, flags_of, plan

NUM_NODE_GPUS = 8
"""GPUs of a node, whose links alone are fast enough for a sequence group."""
NUM_TIMED, NUM_VARIED = 4, 2
"""Layouts whose cycle is followed in time, and those that are tried with every threshold: a time
line takes seconds, and a trace for each number of GPUs in a group and kind of recomputation."""
WHOLE = "engine.whole_numel"
THRESHOLDS = (0, 100_000, 2_000_000)
"""Sizes up to which parameters stay whole: none, norms and biases, and a LoRA's matrices too."""


@dataclass(frozen=True)
class Layout:
    """A way to lay the same batches out over the same GPUs."""

    change: Change
    """The fields that decide it, by dotted name."""
    made: Plan


def propose(made: Plan, count: int = 3) -> list[Layout]:
    """Return the fastest layouts that fit, at most `count`, the fastest first, and the recipe's own
    as the last where it fits and is slower.

    They differ in what is recomputed, sequence parallelism, micro-batches and, under ZeRO-3, in
    which parameters stay whole; the number of GPUs and the batch stay. By operations alone
    `NUM_TIMED` of them are chosen, whose seconds are those of the time line. None is returned for
    CPUs, whose memory is not judged.
    """
    own = _own_change(made.recipe)
    fitting = [layout for layout in _layouts(made, own) if layout.made.fits]
    chosen = sorted(fitting, key=_cost)[:NUM_TIMED]
    timed = sorted((_timed(made, layout.change) for layout in chosen), key=_cost)
    others = [
        _timed(made, layout.change | {WHOLE: numel})
        for layout in timed[:NUM_VARIED]
        for numel in THRESHOLDS
        if WHOLE in own and numel != own[WHOLE]
    ]
    found = sorted((each for each in timed + others if each.made.fits), key=_cost)
    best = _differing(found, own)[:count]
    if made.fits and found and all(layout.change != own for layout in best):
        best.append(_timed(made, own))
    return best


def describe_proposals(made: Plan, layouts: Sequence[Layout]) -> Iterator[str]:
    """Yield a line for each layout that was proposed, and which of them is the recipe's own."""
    if not layouts:
        yield "no layout of recomputation, sequence groups and micro-batches fits on these GPUs"
        return
    yield "the fastest layouts that fit:"
    own = _own_change(made.recipe)
    for layout in layouts:
        size, line = layout.made.gpu_bytes / GIB, layout.made.time_line
        gathered = f", {line.gathered_bytes / 1e9:.0f} GB gathered" if line else ""
        note = "  (the recipe's)" if layout.change == own else ""
        seconds = layout.made.seconds_per_cycle
        flags = flags_of(layout.change)
        yield f"  {flags}  {seconds:.1f} s per cycle, {size:.1f} GiB{gathered}{note}"


def _own_change(recipe: Recipe) -> Change:
    """Return the fields of the recipe that layouts differ in."""
    change: Change = {
        "kernels.recompute_blocks": recipe.kernels.recompute_blocks,
        "cluster.sequence_parallel": recipe.cluster.sequence_parallel,
        "schedule.num_micro_batches": recipe.schedule.num_micro_batches,
    }
    if isinstance(recipe.engine, DeepSpeedEngineConfig) and recipe.engine.zero_stage == 3:
        change[WHOLE] = recipe.engine.whole_numel
    return change


def _layouts(made: Plan, own: Change) -> Iterator[Layout]:
    """Yield all layouts with the recipe's threshold, planned at its share of the peak."""
    batch_size = made.recipe.schedule.batch_size
    divisors = [n for n in range(1, batch_size + 1) if batch_size % n == 0]
    sizes = [n for n in range(1, NUM_NODE_GPUS + 1) if NUM_NODE_GPUS % n == 0]
    for recompute, size, num_micro_batches in product(get_args(Recompute), sizes, divisors):
        change = own | {
            "kernels.recompute_blocks": recompute,
            "cluster.sequence_parallel": size,
            "schedule.num_micro_batches": num_micro_batches,
        }
        try:
            yield Layout(change, plan(changed(made.recipe, change), mfu=made.mfu, advise=False))
        except RecipeError:  # it does not divide, or blocks are compiled
            continue


def _timed(made: Plan, change: Change) -> Layout:
    """Return a layout whose seconds are those of the time line, or of the share that was given."""
    recipe = changed(made.recipe, change)
    return Layout(change, plan(recipe, mfu=made.given_mfu, rates=made.rates, advise=False))


def _cost(layout: Layout) -> tuple[float, float, float]:
    """Order by the seconds that are printed, then by what is gathered, then by memory.

    Hidden gathers take no time in the plan, but memory, network and a processor that begins them.
    """
    seconds, line = layout.made.seconds_per_cycle or 0.0, layout.made.time_line
    return round(seconds, 1), line.gathered_bytes if line else 0.0, layout.made.gpu_bytes


def _differing(layouts: Sequence[Layout], own: Change) -> list[Layout]:
    """Return the first of those that differ in the threshold alone, and the recipe's own."""
    found: dict[Any, Layout] = {}
    for layout in layouts:
        key = tuple(value for name, value in layout.change.items() if name != WHOLE)
        found.setdefault(layout.change == own or key, layout)
    return list(found.values())
