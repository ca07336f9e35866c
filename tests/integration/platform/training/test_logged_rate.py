"""A run logs its learning rate, which goes on with a resumed run."""

import json
from pathlib import Path

import pytest
import torch

from magicdistill.platform.config.recipe import Recipe, load_recipe
from magicdistill.platform.config.sections import OptimizerConfig, ScheduleConfig
from magicdistill.platform.engines.engine import lr_factor
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.training.worker import Worker
from tests.tiny_run import tiny_recipe, write_cache


def rates(optimizer: OptimizerConfig, num_updates: int) -> list[float]:
    """Return the rate of each update of a run with so many of them."""
    factor = lr_factor(optimizer.over(num_updates))
    return [optimizer.lr * factor(step) for step in range(num_updates)]


def run_of(folder: Path, num_cycles: int) -> RunDirectory:
    method = load_recipe("portrait-tiny", ["--method.name", "finetune"]).method
    optimizers = {"generator": {"lr": 1e-3, "decay": 1.0}}
    schedule = {"num_cycles": num_cycles, "optimizers": optimizers, "checkpoint_every": 2}
    values = tiny_recipe(2, schedule=schedule).model_dump()
    values |= {"method": method.model_dump(), "evaluation": None}
    return RunDirectory.create(folder, Recipe.model_validate(values), "run")


def logged(run: RunDirectory) -> list[float]:
    return [row["generator/lr"] for row in run.metrics()]


def test_a_run_logs_its_rate_and_a_resumed_one_takes_that_of_the_longer_run(tmp_path: Path) -> None:
    run, data = run_of(tmp_path, 4), write_cache(tmp_path / "latents")
    torch.manual_seed(0)
    Worker(run, data, None, rank=0, world_size=1).run_all()
    optimizer = run.recipe().schedule.optimizers["generator"]
    assert logged(run) == pytest.approx(rates(optimizer, 4))
    assert json.loads(run.metrics_path.read_text().splitlines()[-1])["generator/lr"] > 0
    run.store(run.recipe().model_copy(update={"schedule": longer(run.recipe(), 8)}))
    Worker(run, data, None, rank=0, world_size=1).run_all()
    assert logged(run) == pytest.approx(rates(optimizer, 4) + rates(optimizer, 8)[4:])


def longer(recipe: Recipe, num_cycles: int) -> ScheduleConfig:
    return recipe.schedule.model_copy(update={"num_cycles": num_cycles})
