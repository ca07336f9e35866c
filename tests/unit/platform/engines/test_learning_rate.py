"""The learning rate follows the length of the run."""

import pytest
import torch
from torch import nn

from magicdistill.models.networks.placement import WHOLE
from magicdistill.platform.config.recipe import load_recipe
from magicdistill.platform.config.sections import (
    OptimizerConfig,
    TorchEngineConfig,
)
from magicdistill.platform.engines.engine import TorchEngine, lr_factor


def rates(optimizer: OptimizerConfig, num_updates: int) -> list[float]:
    """Return the rate of each update of a run with so many of them."""
    factor = lr_factor(optimizer.over(num_updates))
    return [optimizer.lr * factor(step) for step in range(num_updates)]


@pytest.mark.parametrize("num_cycles", [20, 80, 200])
def test_the_default_recipe_trains_to_its_end_however_long_it_is(num_cycles: int) -> None:
    recipe = load_recipe("portrait-tiny", ["--schedule.num_cycles", str(num_cycles)])
    found = rates(recipe.schedule.optimizers["generator"], num_cycles)
    assert min(found) > 0
    assert found == rates(OptimizerConfig(lr=1e-4, decay_steps=num_cycles), num_cycles)


def test_a_length_in_updates_stays_what_it_is() -> None:
    fixed = OptimizerConfig(lr=1, decay=1, decay_steps=40)
    assert rates(fixed, 80)[40:] == [0] * 40


def test_without_a_fall_the_rate_stays() -> None:
    assert set(rates(OptimizerConfig(lr=0.5), 80)) == {0.5}


def test_half_a_run_is_half_of_its_updates() -> None:
    half = OptimizerConfig(lr=1, decay=0.5, final_lr=0.1)
    assert rates(half, 80)[40:] == pytest.approx([0.1] * 40)


@pytest.mark.parametrize("name", ["finetune", "lcm", "dmd", "magic-gt"])
def test_a_method_says_how_often_it_updates_a_role(name: str) -> None:
    recipe = load_recipe("portrait-tiny", ["--method.name", name])
    built = recipe.method.build(recipe.model.model_copy(update={"teacher": None}), WHOLE)
    updates = list(built.updates(recipe.schedule.num_cycles))
    for role in recipe.method.roles:
        assert recipe.method.updates_per_cycle(role) == updates.count(role)


def test_an_engine_tells_the_rate_of_its_next_update() -> None:
    config = OptimizerConfig(lr=0.1, decay_steps=4)
    engine = TorchEngine(TorchEngineConfig(), nn.Linear(2, 1), config, 1)
    found = []
    for _ in range(4):
        found.append(engine.lr)
        engine.backward(engine(torch.ones(1, 2)).sum(), last=True)
        engine.step()
    assert found == pytest.approx(rates(config, 4))
