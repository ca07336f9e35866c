"""Draw the time line of a cycle, and what a cycle takes on other numbers of GPUs."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from magicdistill.platform.planning.plan import Plan
from magicdistill.platform.planning.time_line import BESIDE, IN_TURN, Kind, Lanes, TimeLine

NUM_GPUS = (8, 16, 32, 40, 80)
COLORS: dict[Kind, str] = {
    "attention": "#4c72b0",
    "linear": "#55a868",
    "other": "#8c8c8c",
    "exchange": "#dd8452",
    "waiting": "#c44e52",
    "gather": "#8172b3",
    "reduce": "#937860",
}
WINDOW_S = 0.25
"""Seconds of an update that are drawn large."""


def draw_time_line(made: Plan, file: Path) -> None:
    """Write the picture of a planned recipe as PNG.

    Above is a stretch of the generator's backward, lane by lane; below are the seconds of a cycle
    on 8 to 80 GPUs, each group of ranks with the samples that it has now.
    """
    line = made.scaled(made.recipe.cluster.num_workers)
    figure = Figure(figsize=(11, 7), layout="constrained")
    above, below = figure.subplots(2, 1)
    _draw_lanes(above, max(line.updates, key=lambda update: update.seconds("reduce")))
    lines = {count: made.scaled(count) for count in _counts(made)}
    _draw_bars(below, lines)
    gpu, recipe = made.recipe.cluster.gpu, made.recipe
    figure.suptitle(f"{recipe.name}: {recipe.cluster.num_workers} {gpu}, simulated", fontsize=11)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def _counts(made: Plan) -> list[int]:
    group = made.recipe.cluster.sequence_parallel
    return [count for count in NUM_GPUS if count % group == 0]


def _draw_lanes(axes: Axes, update: Lanes) -> None:
    """Draw a stretch in the middle of the second half, where the backward is."""
    start_s = 0.75 * update.end_s
    lanes: dict[str, tuple[Kind, ...]] = {"reduce": ("reduce",), "gather": ("gather",)}
    lanes |= {"compute": IN_TURN}
    for height, kinds in enumerate(lanes.values()):
        for kind in kinds:
            spans = [
                (1e3 * (span.start_s - start_s), 1e3 * (span.end_s - span.start_s))
                for span in update.spans
                if span.kind == kind and start_s - 1 < span.start_s < start_s + WINDOW_S
            ]
            axes.broken_barh(spans, (height - 0.4, 0.8), color=COLORS[kind])
    axes.set(
        xlim=(0, 1e3 * WINDOW_S),
        xlabel=f"ms of the {update.end_s:.1f} s that the update {update.name!r} takes",
        yticks=range(len(lanes)),
        yticklabels=list(lanes),
    )


def _draw_bars(axes: Axes, lines: dict[int, TimeLine]) -> None:
    names = [f"{count} GPUs" for count in lines]
    left = [0.0] * len(lines)
    for kind in IN_TURN:
        seconds = [line.of(kind) for line in lines.values()]
        axes.barh(names, seconds, left=left, color=COLORS[kind], label=kind)
        left = [before + own for before, own in zip(left, seconds, strict=True)]
    for height, line in enumerate(lines.values()):
        beside = sum(line.of(kind) for kind in BESIDE)
        text = f" {line.seconds:.2f} s; gathers and reductions {beside:.1f} s"
        hidden = f"{text}, {line.hidden:.1%} of it hidden"
        axes.text(left[height], height, hidden, va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="seconds of a cycle", xlim=(0, 1.5 * max(left)))
    axes.figure.legend(fontsize=8, loc="outside lower center", ncols=len(IN_TURN))
