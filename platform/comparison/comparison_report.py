"""Write the results of a comparison: tables, curves, contact sheets, a video, and Markdown."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev

from magicdistill.data_pipeline.io.whole_files import write_text
from magicdistill.platform.comparison.comparison_recipe import ComparisonRecipe, base_recipe
from magicdistill.platform.evaluation.evaluate_run import read_scores
from magicdistill.platform.inference.contact_sheets import (
    Clips,
    contact_sheet,
    load_clips,
    side_by_side,
)
from magicdistill.platform.inference.variants import REAL
from magicdistill.platform.reports.comparison_curves import DISTANCE, curve, plot_curves
from magicdistill.platform.runs import logs
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.tracking.tracker import Tracker

DIGITS = {
    "seeds": 0,
    "NFE": 0,
    "FD (proxy)": 3,
    "motion ÷ real": 2,
    "flicker ÷ real": 2,
    "FD last ÷ lowest": 2,
    "s/clip": 3,
    "training s": 0,
    "gap ratio": 2,
    "gap cosine": 3,
}
"""Columns of the tables, with their digits after the point."""
NUM_PICTURED = 3
"""Number of clips in the picture of all methods."""


@dataclass(frozen=True)
class Tuned:
    """The trials of a method, by learning rate."""

    method: str
    trials: Mapping[float, RunDirectory]

    @property
    def distances(self) -> dict[float, float]:
        """The Fréchet distance (proxy) at each rate."""
        return {rate: measure(run)["FD (proxy)"] for rate, run in self.trials.items()}

    @property
    def best(self) -> float:
        """The rate with the smallest distance."""
        return min(self.distances, key=self.distances.__getitem__)


Groups = Mapping[str, Sequence[RunDirectory]]
"""Finished runs by label, one for each seed."""


def measure(run: RunDirectory) -> dict[str, float]:
    """Return the numbers of an evaluated run by column; NaN where it has none."""
    row = read_scores(run)[-1]
    seconds = [line["seconds_per_cycle"] for line in run.metrics()]
    _, distances = curve(run, DISTANCE)
    return {
        "NFE": row.nfe,
        "FD (proxy)": row.proxy_frechet_distance,
        "motion ÷ real": row.dynamic_degree_proxy,
        "flicker ÷ real": row.flicker_proxy,
        "FD last ÷ lowest": distances[-1] / min(distances) if distances else math.nan,
        "s/clip": row.seconds_per_clip,
        "training s": median(seconds) * len(seconds) if seconds else math.nan,
        "gap ratio": _last(run, "validation/gap_ratio"),
        "gap cosine": _last(run, "validation/gap_cosine"),
    }


def _last(run: RunDirectory, name: str) -> float:
    _, values = curve(run, name)
    return values[-1] if values else math.nan


def spread(values: Sequence[float], digits: int) -> str:
    """Return `mean ± sample standard deviation`, a single value alone, or an empty text."""
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return ""
    if len(values) == 1 or math.inf in values or not digits:
        return f"{mean(values):.{digits}f}"
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def table(groups: Groups) -> list[dict[str, str]]:
    """Return a row for each label, with mean and spread over seeds of every measure."""
    rows = []
    for label, runs in groups.items():
        found = [measure(run) | {"seeds": len(runs)} for run in runs]
        cells = {name: spread([one[name] for one in found], DIGITS[name]) for name in DIGITS}
        rows.append({"": label, "sampler": read_scores(runs[0])[-1].sampler} | cells)
    used = [name for name in rows[0] if any(row[name] for row in rows)]
    return [{name: row[name] for name in used} for row in rows]


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows with the same keys as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([*row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tuning_table(tuned: Sequence[Tuned]) -> list[dict[str, str]]:
    """Return the distance of each method at each rate, and the rate that was chosen.

    An edge of the grid is marked: a better rate may lie beyond it.
    """

    def chosen(found: Tuned) -> str:
        edge = len(found.trials) > 2 and found.best in (min(found.trials), max(found.trials))
        return f"{found.best:g}" + (" (edge)" if edge else "")

    return [
        {"": found.method}
        | {f"{rate:g}": f"{distance:.3f}" for rate, distance in found.distances.items()}
        | {"chosen": chosen(found)}
        for found in tuned
    ]


def write_report(
    comparison: ComparisonRecipe,
    home: RunDirectory,
    runs: Mapping[str, Sequence[RunDirectory]],
    tuned: Sequence[Tuned],
    tracker: Tracker,
) -> None:
    """Write everything to the comparison's folder and log it; `runs` are the evaluated ones."""
    methods = {name: runs[name] for name in comparison.methods if name in runs}
    sections = {comparison.name: methods} if methods else {}
    for name, ablation in comparison.ablations.items():
        labels = {variant: f"{name}/{variant}" for variant in ablation.variants}
        if found := {v: runs[label] for v, label in labels.items() if label in runs}:
            sections[f"{name} (of {ablation.of})"] = found
    text = [f"`python jobs/compare.py --recipe {comparison.name}`, {_code(methods)}."]
    if tuned:
        rows = tuning_table(tuned)
        tracker.table(rows, "tuning")
        text += [_explain_tuning(comparison), markdown(rows)]
    for title, groups in sections.items():
        rows = table(groups)
        slug = title.split(" ")[0]
        tracker.table(rows, slug)
        text += [f"### {title}", markdown(rows)]
        if plot_curves(home.samples / f"curves-{slug}.png", groups):
            text.append(f"![curves of {title}](samples/curves-{slug}.png)")
    if methods:
        text.append(f"![the methods on the same clips]({_pictures(home, methods, comparison)})")
    write_text(home.path / "report.md", "\n\n".join(text) + "\n")
    for name in ("report.md", "comparison.yaml"):
        tracker.artifact(home.path / name)
    tracker.artifact(home.samples, "samples")
    tracker.note("\n\n".join(part for part in text if not part.startswith("![")))
    print("\n".join(text), flush=True)
    logs.say(f"report {home.path / 'report.md'}")


def _pictures(home: RunDirectory, methods: Groups, comparison: ComparisonRecipe) -> str:
    """Write a sheet for each method, one of all methods, and the video; return the sheet of all."""
    clips: dict[str, Clips] = {}
    for name, runs in methods.items():
        found, own = load_clips(runs[0].clips_path), read_scores(runs[0])[-1].variant
        clips[REAL], clips[name] = found[REAL], found[own]
        contact_sheet(home.samples / f"sheet-{name}.png", {key: clips[key] for key in (REAL, name)})
    first = clips[REAL][:, :, :1].expand_as(clips[REAL])
    rows = {"first frame": first, **clips}
    evaluation = base_recipe(comparison).evaluation
    assert evaluation is not None
    fps = evaluation.data.bucket.fps
    side_by_side(home.samples / "comparison.mp4", rows, fps=fps, variants_in="rows")
    few = {name: found[:NUM_PICTURED] for name, found in clips.items()}
    contact_sheet(home.samples / "comparison.png", few)
    return "samples/comparison.png"


def _explain_tuning(comparison: ComparisonRecipe) -> str:
    tuning = comparison.tuning
    assert tuning is not None
    return (
        f"Rate of each method: the smallest proxy Fréchet distance after {tuning.share:.0%} of its "
        f"training, seed {tuning.seed}."
    )


def _code(methods: Groups) -> str:
    """Name the commits with which the runs were made."""
    found = [run.provenance() for runs in methods.values() for run in runs]
    commits = ", ".join(sorted({(made.commit or "unknown")[:10] for made in found}))
    changed = " with uncommitted changes" if any(made.diff for made in found) else ""
    return f"code {commits}{changed}"
