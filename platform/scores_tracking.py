"""A table of scores in MLflow: a run of its own, beside those that made the models."""

import json
from pathlib import Path

from magicdistill.models.checksums import sha256_of
from magicdistill.models.networks.weights import find_weights
from magicdistill.platform.recipe import Recipe
from magicdistill.platform.run_directory import RunDirectory, resolve_root
from magicdistill.platform.tracking import Tracker


def track_scores(recipe: Recipe, path: Path) -> None:
    """Track the JSON file of an evaluation; the same scores are one run, however often told."""
    ways = json.loads(path.read_text())["ways"]
    name = f"{recipe.name}-evaluation-{sha256_of(path)[:8]}"
    run = RunDirectory(resolve_root(recipe.runs) / name)
    if not run.recipe_path.exists():
        run = RunDirectory.create(recipe.runs, recipe, name, latest=False)
    with Tracker.start(recipe.tracking, run, {"job": "evaluate"}, purpose="evaluation") as tracker:
        tracker.note(f"**Scores** of `{ways[-1]['weights']}` and what it is compared with: {path}")
        tracker.artifact(path)
        for way in ways:
            found = {f"evaluation/{way['name']}/{k}": v for k, v in way["metrics"].items()}
            tracker.metrics(found, step=0)
            if way["weights"]:
                field = f"evaluated.{way['name']}"
                weights = find_weights(way["weights"], "model.teacher")
                tracker.weights(field, way["weights"], weights)
        names = list(dict.fromkeys(name for way in ways for name in way["metrics"]))
        rows = [{"": w["name"]} | {name: w["metrics"].get(name) for name in names} for w in ways]
        tracker.table(rows, "table")
