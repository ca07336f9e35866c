"""Write one self-contained HTML page about a run: `jobs/evaluate.py --report RUN`."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from magicdistill.data_pipeline.config import DataConfig
from magicdistill.data_pipeline.reports.pages import data_uri, write_page
from magicdistill.models.metrics.columns.registry import METRICS, arrow, title
from magicdistill.platform.config.recipe import (
    Recipe,
    differences,
    load_recipe,
    recipe_names,
    to_yaml,
)
from magicdistill.platform.evaluation.score_table import ScoreTable
from magicdistill.platform.reports.run_curves import NOTES, curves, time_shares
from magicdistill.platform.runs.run_directory import RunDirectory

TEMPLATE = Path(__file__).with_name("run_report.html.jinja")
PAGE = "report.html"
MAX_VIDEO_BYTES = 12 << 20
"""Videos above this size are named on the page instead of shown."""
PICTURE_PX = 1600
"""Longest side of a picture on the page, in pixels."""
NUM_STAGES = 3
"""Number of validation pictures shown over the course of training."""
CAPTIONS = {
    "comparison": "the same held-out clips by every way of generating, played three times",
}
HEADS: dict[str, str] = {
    "variant": "method",
    "num_clips": "n",
    "nfe": "network evaluations",
    "seconds_per_clip": "s per clip",
}
PACKAGES = ("torch", "deepspeed", "diffusers", "transformers", "peft", "ray")
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Best:
    """The best checkpoint, and by which scores it is the best."""

    cycle: int | None
    why: str
    metric: str
    """The metric by which checkpoints are compared (`health.best_by`)."""
    scores: Sequence[tuple[int, float]]
    """Pairs of cycle and score."""


@dataclass(frozen=True)
class ProtocolScores:
    """The result of one protocol."""

    table: ScoreTable
    plots: Sequence[str]
    """Pictures as data URLs."""


def write_run_report(run: RunDirectory) -> Path:
    """Write the page into the run's folder; return it."""
    recipe, rows = run.recipe(), run.history()
    path = run.path / PAGE
    write_page(
        path,
        TEMPLATE,
        name=run.path.name,
        state=_state(run, recipe, rows),
        violation=_text(run.health_report_path),
        facts=_facts(run, recipe, rows),
        best=best_checkpoint(run, recipe, rows),
        lineage=_lineage(run, recipe),
        curves=curves(rows, recipe.health),
        times=time_shares(rows),
        videos=[_video(video) for video in sorted(run.samples.glob("*.mp4"))],
        sheets=_sheets(run),
        own=_own_scores(run),
        protocols=list(_protocol_scores(run)),
        changed=_changes(recipe),
        recipe=to_yaml(recipe),
        diff=run.provenance().diff,
        data_uri=data_uri,
    )
    return path


def best_checkpoint(run: RunDirectory, recipe: Recipe, rows: Rows) -> Best:
    """Return the best checkpoint that the run has recorded, or the last one."""
    metric = recipe.health.best_by
    scores = [
        (row["step"], value)
        for row in rows
        for name, value in row.items()
        if name.rpartition("/")[2] == metric
    ]
    recorded = _text(run.path / "best.txt")
    if not recorded:
        last = rows[-1]["step"] if rows else None
        reason = f"No checkpoint was judged: no {metric} was measured before one was saved."
        reason += " The last one counts." if last else ""
        return Best(last, reason, metric, scores)
    cycle = int(recorded)
    value = next((score for step, score in reversed(scores) if step <= cycle), None)
    least = f"{metric} of {value:.4g}" if value is not None else metric
    among = f"least of {len(scores)}" if len(scores) > 1 else "only one"
    why = f"Its {least} is the {among} measured. {metric.capitalize()}: {NOTES.get(metric, '')}."
    return Best(cycle, why, metric, scores)


def _state(run: RunDirectory, recipe: Recipe, rows: Rows) -> str:
    done, total = rows[-1]["step"] if rows else 0, recipe.schedule.num_cycles
    if run.scores_path.exists() or (done == total and (run.path / "model").is_dir()):
        return "finished"
    if run.health_report_path.exists():
        return "stopped for its health"
    return f"unfinished: {done} of {total} cycles"


def _facts(run: RunDirectory, recipe: Recipe, rows: Rows) -> dict[str, str]:
    made, schedule, cluster = run.provenance(), recipe.schedule, recipe.cluster
    seconds = sum(row.get("seconds_per_cycle", 0.0) for row in rows)
    method = recipe.method.model_dump(mode="json")
    settings = (f"{key} {method[key]}" for key in recipe.method.notable)
    devices = "GPUs" if cluster.uses_gpus else "processors"
    return {
        "recipe": recipe.name,
        "method": ", ".join([method["name"], *settings]),
        "teacher": str(recipe.model.teacher or "none: trained from random weights"),
        "VAE": str(recipe.model.vae),
        "trained": f"{rows[-1]['step'] if rows else 0} of {schedule.num_cycles} cycles, batch "
        f"{schedule.batch_size}, {_duration(seconds)}",
        "on": f"{cluster.num_workers} workers on {devices}, {recipe.engine.kind}",
        "seed": str(recipe.seed),
        "code": f"{made.commit or 'unknown'}{', with uncommitted changes' if made.diff else ''}",
        "packages": ", ".join(f"{p} {made.packages[p]}" for p in PACKAGES if p in made.packages),
    }


def _lineage(run: RunDirectory, recipe: Recipe) -> list[dict[str, str]]:
    """Return the names of the data versions, by purpose."""
    configs: dict[str, DataConfig] = {"training": recipe.data}
    if recipe.evaluation is not None:
        configs["held-out"] = recipe.evaluation.data
    return [
        {
            "clips": purpose,
            "sources": "; ".join(_source(source) for source in configs[purpose].sources),
            "shape": str(configs[purpose].bucket),
        }
        | facts
        for purpose, facts in run.data().items()
    ]


def _source(source: Any) -> str:
    values = source.model_dump(mode="json", exclude_defaults=True, exclude={"kind"})
    told = ", ".join(f"{name} {value}" for name, value in values.items())
    return f"{source.kind} ({told})" if told else source.kind


def _changes(recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """Return the fields in which the run differs from the recipe of its name, with both values."""
    if recipe.name not in recipe_names():
        return {}
    found = differences(load_recipe(recipe.name), recipe)
    return {name: values for name, values in found.items() if name != "runs"}


def _sheets(run: RunDirectory) -> list[tuple[str, str]]:
    """Return contact sheets with captions: the comparison, and stages of the training."""
    stages = sorted(run.samples.glob(f"cycle-{'[0-9]' * 7}.png"))  # no copies of them
    chosen = {round(i * (len(stages) - 1) / (NUM_STAGES - 1)) for i in range(NUM_STAGES)}
    found = [
        (f"after {int(path.stem.removeprefix('cycle-'))} cycles, under the real clips", path)
        for number, path in enumerate(stages)
        if number in chosen
    ]
    if (sheet := run.samples / "comparison.png").exists():
        found.insert(0, ("held-out clips by every way of generating, time to the right", sheet))
    return [(caption, _picture(path)) for caption, path in found]


def _picture(path: Path) -> str:
    """Return a picture as a JPEG data URL, reduced to PICTURE_PX."""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((PICTURE_PX, 10 * PICTURE_PX))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return data_uri("image/jpeg", file.getvalue())


def _video(path: Path) -> tuple[str, str]:
    """Return a caption and a data URL; no URL for a file above MAX_VIDEO_BYTES."""
    caption = CAPTIONS.get(path.stem, path.stem)
    if path.stat().st_size > MAX_VIDEO_BYTES:
        return f"{caption}: too large for this page, see {path.name} in samples", ""
    return caption, data_uri("video/mp4", path.read_bytes())


def _own_scores(run: RunDirectory) -> list[dict[str, str]]:
    """Return the table of the evaluation that ended the training."""
    if not run.scores_path.exists():
        return []
    return [
        {
            _head(name): f"{value:.4g}" if isinstance(value, float) else str(value)
            for name, value in row.items()
        }
        for row in json.loads(run.scores_path.read_text())
    ]


def _protocol_scores(run: RunDirectory) -> Iterator[ProtocolScores]:
    for path in sorted(run.path.glob("evaluation/*/scores.json")):
        plots = (path.with_name(name) for name in ("bars.png", "nfe.png"))
        yield ProtocolScores(
            ScoreTable.load(path),
            [data_uri("image/png", plot.read_bytes()) for plot in plots if plot.exists()],
        )


def _duration(seconds: float) -> str:
    hours, minutes = int(seconds // 3600), int(seconds % 3600 // 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60:.0f} s"


def _text(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def _head(name: str) -> str:
    """Return the head of a column of scores."""
    return HEADS.get(name) or (f"{title(name)} {arrow(name)}" if METRICS.get(name) else name)
