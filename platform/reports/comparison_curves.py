"""Draw curves of metrics over the training of several runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from magicdistill.platform.runs.run_directory import RunDirectory

DISTANCE = "validation/proxy_frechet_distance"
PANELS = {
    DISTANCE: "Fréchet distance (proxy)",
    "validation/dynamic_degree_proxy": "motion ÷ real (proxy)",
    "validation/flicker_proxy": "flicker ÷ real (proxy)",
}


def curve(run: RunDirectory, name: str) -> tuple[list[int], list[float]]:
    """Return the cycles at which a metric was measured, and its values."""
    rows = [row for row in run.history() if name in row]
    return [row["step"] for row in rows], [row[name] for row in rows]


def plot_curves(path: Path, groups: Mapping[str, Sequence[RunDirectory]]) -> bool:
    """Draw the metric of each panel, a line per group, over the share of the training done.

    A line is the mean over the runs of a group, in a band from their minimum to their maximum.
    Returns whether there was anything to draw: methods that train nothing have no curve.
    """
    trained = {
        label: kept
        for label, runs in groups.items()
        if (kept := [run for run in runs if curve(run, DISTANCE)[0]])
    }
    if not trained:
        return False
    figure = Figure(figsize=(13, 4), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        axes.set(title=title, xlabel="share of training")
        axes.set_yscale("log" if name == DISTANCE else "linear")
        axes.grid(alpha=0.3)
        for label, runs in trained.items():
            _draw(axes, label, runs, name)
    figure.axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return True


def _draw(axes: Axes, label: str, runs: Sequence[RunDirectory], name: str) -> None:
    steps, _ = curve(runs[0], name)
    shares = np.asarray(steps) / runs[0].recipe().schedule.num_cycles
    values = np.stack([curve(run, name)[1] for run in runs])
    [line] = axes.plot(shares, values.mean(0), marker=".", label=label)
    band = (values.min(0), values.max(0))
    axes.fill_between(shares, *band, color=line.get_color(), alpha=0.2, linewidth=0)
