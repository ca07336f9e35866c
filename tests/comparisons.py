"""A comparison of toy runs, as fixtures."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from magicdistill.platform.comparison.comparison_recipe import (
    ComparisonRecipe,
    load_comparison,
    plan,
)
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.evaluation.evaluate_run import Scores
from magicdistill.platform.inference.contact_sheets import save_clips
from magicdistill.platform.runs.run_directory import RunDirectory

TEXT = """
base: {base}
runs: {runs}
overrides: {{schedule: {{num_cycles: 40}}}}
methods:
  teacher: {{method: {{name: euler, sampler: {{num_steps: 28}}}}}}
  magic: {{method: {{name: magic}}}}
  lcm:
    method: {{name: lcm}}
    schedule: {{num_cycles: 200, optimizers: {{generator: {{decay_steps: 200}}}}}}
seeds: [0, 1]
tuning: {{rates: [1.0e-4, 1.0e-3], seed: 9, overrides: {{schedule: {{batch_size: 4}}}}}}
ablations:
  alpha:
    of: magic
    variants:
      none: {{method: {{alpha_weak: 0}}}}
      as before: {{}}
"""


@pytest.fixture
def path(tmp_path: Path, base: Path) -> Path:
    base.write_text(base.read_text() + "evaluation: {data: {sources: [{kind: package-clips}]}}\n")
    path = tmp_path / "toy-compare.yaml"
    path.write_text(TEXT.format(base=base, runs=tmp_path / "runs"))
    return path


@pytest.fixture
def comparison(path: Path) -> ComparisonRecipe:
    return load_comparison(path)


def judged(recipe: Recipe, distance: float, *, trained: bool = True) -> RunDirectory:
    """Write a run as training and evaluation leave it."""
    run = RunDirectory.create(recipe.runs, recipe)
    scores = Scores("student", "euler", 4, 0.02, distance, 0.9, 1.1)
    run.scores_path.write_text(json.dumps([asdict(scores)]))
    clips = torch.rand(4, 3, 5, 16, 16) * 2 - 1
    save_clips(run.clips_path, {"real": clips, "student": -clips})
    for cycle in range(1, 5) if trained else ():
        measured = {
            "validation/proxy_frechet_distance": distance * cycle,
            "validation/dynamic_degree_proxy": 1.0,
            "validation/flicker_proxy": 1.0,
            "validation/gap_ratio": 0.7,
            "validation/gap_cosine": 0.99,
        }
        run.append_metrics(cycle, {"seconds_per_cycle": 2.0} | (measured if cycle % 2 else {}))
    return run


@pytest.fixture
def groups(comparison: ComparisonRecipe) -> dict[str, list[RunDirectory]]:
    found: dict[str, list[RunDirectory]] = {}
    runs = plan(comparison, {}, only=["teacher", "magic", "alpha"])
    for number, planned in enumerate(runs):
        trained = planned.label != "teacher"
        run = judged(planned.recipe, 0.1 * (number + 1), trained=trained)
        found.setdefault(planned.label, []).append(run)
    return found
