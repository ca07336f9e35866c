"""Finds the model that a job is given, before the networks' packages are imported."""

from pathlib import Path

from magicdistill.models.checksums import digest_weights
from magicdistill.models.locations import find_weights
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.runs.run_directory import resolve_root

MODEL, RECIPE = "model", "recipe.yaml"


def find_model(recipe: Recipe, model: str) -> tuple[Path, Path]:
    """Return the weights of a run, or given by their path, and the folder of their scores.

    Raises FileNotFoundError where there are none.
    """
    runs = resolve_root(recipe.runs)
    for run in (Path(model).expanduser(), runs / model):
        if (run / RECIPE).is_file():
            return find_weights(str(run.resolve() / MODEL), "--model"), run.resolve() / "evaluation"
    weights = find_weights(model, "--model")
    return weights, runs / "evaluations" / f"{recipe.name}-{digest_weights(weights)[:12]}"
