"""Pictures of an evaluation: bars for each metric, and quality against network evaluations."""

from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from magicdistill.models.metrics.columns.registry import arrow, title
from magicdistill.platform.evaluation.score_table import ScoreRow, ScoreTable

OURS, PAPERS = "#3367a8", "#b8bfca"
COLUMNS = 4
"""Number of panels side by side."""
Draw = Callable[[Axes, Sequence[ScoreRow], str], None]


def plot_scores(folder: Path, table: ScoreTable) -> list[Path]:
    """Write bars.png and nfe.png of the metrics that some row has; return what was written."""
    rows = [*table.papers, *table.rows]
    metrics = [metric for metric in table.shown if _having(rows, metric)]
    if not metrics:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "bars.png", folder / "nfe.png"]
    _panels(rows, metrics, _bars, 0.8 + 0.22 * len(rows)).savefig(paths[0], dpi=110)
    _panels(rows, metrics, _against_nfe, 2.8).savefig(paths[1], dpi=110)
    return paths


def _panels(
    rows: Sequence[ScoreRow], metrics: Sequence[str], draw: Draw, height_inch: float
) -> Figure:
    columns = min(COLUMNS, len(metrics))
    lines = ceil(len(metrics) / columns)
    figure = Figure(figsize=(2 + 3 * columns, 0.4 + height_inch * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).flat
    for axes, metric in zip(grid, metrics, strict=False):
        axes.set_title(f"{title(metric)} {arrow(metric)}", fontsize=10)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes, rows, metric)
    for axes in list(figure.axes)[len(metrics) :]:
        axes.set_visible(False)
    keys = [_key("measured here", OURS)]
    keys += [_key("printed in a paper", PAPERS)] if any(not row.is_ours for row in rows) else []
    figure.legend(handles=keys, loc="outside lower right", ncols=2, frameon=False, fontsize=8)
    return figure


def _bars(axes: Axes, rows: Sequence[ScoreRow], metric: str) -> None:
    """Draw a bar for each row, the first on top; a row without the metric has none."""
    values = [row.metrics.get(metric) for row in rows]
    lengths = [value if isinstance(value, float) else 0.0 for value in values]
    bars = axes.barh(range(len(rows)), lengths, color=[_colour(row) for row in rows])
    marks = [
        _spell(value) if isinstance(value, float) else "absent" if row.is_ours else ""
        for row, value in zip(rows, values, strict=True)
    ]
    axes.bar_label(bars, labels=marks, padding=2, fontsize=7)
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows])
    axes.margins(x=0.18)
    axes.invert_yaxis()
    if not axes.get_subplotspec().is_first_col():  # pyright: ignore[reportOptionalMemberAccess]
        axes.set_yticklabels([])


def _against_nfe(axes: Axes, rows: Sequence[ScoreRow], metric: str) -> None:
    """Draw a point for each generator, and a line through the points of one method."""
    points = [(row, value) for row, value in _having(rows, metric) if row.nfe]
    for key in dict.fromkeys((row.method, row.source) for row, _ in points):
        found = sorted((r.nfe, v) for r, v in points if (r.method, r.source) == key)
        colour = _colour(next(r for r, _ in points if (r.method, r.source) == key))
        axes.plot(*zip(*found, strict=True), marker="o", markersize=4, color=colour, linewidth=1)
    for number, (row, value) in enumerate(points):
        if row.is_ours:
            beside = (5, 3) if number % 2 else (5, -9)  # neighbours may lie on one another
            axes.annotate(
                row.method, (row.nfe, value), beside, textcoords="offset points", fontsize=7
            )
    real = [value for row, value in _having(rows, metric) if not row.nfe]
    for value in real:
        axes.axhline(value, color=OURS, linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("network evaluations" + (" (dotted: real)" if real else ""), fontsize=8)
    axes.margins(x=0.2, y=0.15)


def _having(rows: Sequence[ScoreRow], metric: str) -> list[tuple[ScoreRow, float]]:
    """Return the rows that have the metric, with its value."""
    found = ((row, row.metrics.get(metric)) for row in rows)
    return [(row, value) for row, value in found if isinstance(value, float)]


def _spell(value: float) -> str:
    return f"{value:.4g}" if abs(value) > 1e-6 else "0"


def _label(row: ScoreRow) -> str:
    steps = f", {row.nfe}" if row.nfe else ""
    where = "" if row.is_ours else f"  [{row.source.removeprefix('paper: ')}]"
    return f"{row.method}{steps}{where}"


def _colour(row: ScoreRow) -> str:
    return OURS if row.is_ours else PAPERS


def _key(label: str, colour: str) -> Patch:
    return Patch(color=colour, label=label)
