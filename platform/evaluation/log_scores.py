"""Log a table of scores to MLflow, as a run beside those that trained the models."""

from collections.abc import Sequence
from pathlib import Path

from magicdistill.models.checksums import sha256_of
from magicdistill.models.locations import find_weights
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.evaluation.contestants import Contestant
from magicdistill.platform.evaluation.score_table import ScoreTable
from magicdistill.platform.inference.variants import Variant
from magicdistill.platform.runs.run_directory import RunDirectory, resolve_root
from magicdistill.platform.tracking.tracker import Tracker


def track_scores(
    recipe: Recipe, path: Path, ways: Sequence[Variant | Contestant], pictures: Sequence[Path] = ()
) -> None:
    """Log the JSON file of an evaluation; the same scores always are the same run."""
    table = ScoreTable.load(path)
    name = f"{recipe.name}-evaluation-{sha256_of(path)[:8]}"
    run = RunDirectory(resolve_root(recipe.runs) / name)
    if not run.recipe_path.exists():
        run = RunDirectory.create(recipe.runs, recipe, name)
    with Tracker.start(recipe.tracking, run, {"job": "evaluate"}, purpose="evaluation") as tracker:
        tracker.note(f"**Scores** by `{table.protocol}` of `{ways[-1]}`: {path}")
        for file in (path, *pictures):
            tracker.artifact(file)
        for row in table.rows:
            found = {k: v for k, v in row.metrics.items() if isinstance(v, float)}
            tracker.metrics({f"evaluation/{row.method}/{k}": v for k, v in found.items()}, step=0)
        for way in ways:
            if not isinstance(way, Variant):
                continue
            if way.weights:
                weights = find_weights(way.weights, "model.teacher")
                tracker.weights(f"evaluated.{way.name}", way.weights, weights)
            if way.other:
                other = way.other.weights
                tracker.weights(f"evaluated.{way.name}.other", str(other), other)
        tracker.table(table.cells(), "table")
