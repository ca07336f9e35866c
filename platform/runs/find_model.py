"""Finds the model that a job is given, before the networks' packages are imported."""

from pathlib import Path

from magicdistill.models.checksums import digest_weights
from magicdistill.models.locations import find_weights
from magicdistill.models.paths import local_path
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.runs.run_directory import resolve_root

MODEL, RECIPE = "model", "recipe.yaml"


def find_model(recipe: Recipe, model: str) -> tuple[Path, Path]:
    """Return the weights of a run, or given by their path, and the folder of their scores.

    Raises FileNotFoundError where there are none.
    """
    runs, model = resolve_root(recipe.runs), local_path(model)
    for run in (Path(model), runs / model):
        if (run / RECIPE).is_file():
            return find_weights(str(run.resolve() / MODEL), "--model"), run.resolve() / "evaluation"
    weights = find_weights(model, "--model")
    return weights, runs / "evaluations" / f"{recipe.name}-{digest_weights(weights)[:12]}"
