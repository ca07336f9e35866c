"""Recipes of 13B run their updates in full width on tensors without storage, as planned."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from magicdistill.models.networks.presets import PRESETS
from magicdistill.models.objectives.types import Method
from magicdistill.platform.config.recipe import Recipe, load_recipe, recipe_names
from magicdistill.platform.planning.plan import plan
from magicdistill.platform.planning.rehearsal import (
    RoleRehearsal,
    alone_in_group,
    batch_of,
    build_method,
    rehearse,
    rehearse_role,
)
from magicdistill.platform.planning.rehearsal_report import format_rehearsal, report_rehearsal
from tests.registries import registries_restored

LARGE = [name for name in recipe_names() if name.startswith("magic141")]
FORTY = "magic141-4step-40xh100"


@pytest.fixture
def shallow() -> Iterator[str]:
    """The 13B preset in full width, with a block or two of each kind."""
    whole = PRESETS["magic141-13b"]
    few = whole.transformer.model_copy(update={"num_layers": 1, "num_single_layers": 2})
    PRESETS["magic141-shallow"] = whole.model_copy(update={"transformer": few})
    yield "magic141-shallow"
    del PRESETS["magic141-shallow"]


@pytest.mark.parametrize("name", LARGE)
def test_every_magic141_recipe_trains_all_its_parameters_as_planned(name: str, shallow: str):
    recipe = load_recipe(name, ["--model.preset", shallow])
    assert plan(recipe).sample.video_tokens == 67_320
    demand_as_planned(recipe)


def test_hunyuan_video_1_5_trains_all_parameters_that_have_an_effect_as_planned():
    whole = PRESETS["hunyuan15-i2v-8b"]
    few = whole.transformer.model_copy(update={"num_layers": 4})
    with registries_restored():
        PRESETS["hunyuan15-shallow"] = whole.model_copy(update={"transformer": few})
        flags = ["--model.preset", "hunyuan15-shallow"]
        demand_as_planned(load_recipe("hunyuan15-i2v-4step-8xh100", flags))


@pytest.mark.parametrize("recompute", ["none", "selective"])
def test_less_recomputation_goes_as_planned(recompute: str, shallow: str):
    flags = ["--model.preset", shallow, "--kernels.recompute_blocks", recompute]
    demand_as_planned(load_recipe(FORTY, flags))


@pytest.mark.long
def test_forty_gpus_of_13b_go_as_planned_in_full_depth():
    roles = demand_as_planned(load_recipe(FORTY))
    assert [role.num_gradients for role in roles] == [900, 1260]


def demand_as_planned(recipe: Recipe) -> list[RoleRehearsal]:
    roles = list(rehearse(recipe))
    assert [role.role for role in roles] == list(dict.fromkeys(recipe.method.roles))[::-1]
    assert all(role.is_in_order for role in roles), "\n".join(format_rehearsal(recipe, roles))
    assert all(role.num_gradients == role.num_trained > 0 for role in roles)
    assert all(len(role.figures) == 3 for role in roles)
    return roles


def tiny(spoil) -> RoleRehearsal:
    """Rehearse the generator's update of the tiny recipe after a change to its method."""
    recipe = load_recipe("portrait-tiny-smoke")
    with alone_in_group(recipe.cluster.num_workers):
        method = build_method(recipe)
        spoil(method)
        made = plan(recipe)
        return rehearse_role(method, "generator", batch_of(recipe, made), made)


def test_a_parameter_without_a_gradient_is_named():
    def spoil(method: Method) -> None:
        generator = method.modules["generator"]
        generator.unused = nn.Parameter(torch.empty(3, 2, device="meta"))

    found = tiny(spoil)
    assert found.problems == ("unused (3, 2) gets no gradient",)
    assert found.num_gradients == found.num_trained - 1 and not found.is_in_order


def test_a_layer_of_a_wrong_shape_is_named_with_its_shapes():
    def spoil(method: Method) -> None:
        transformer: Any = method.modules["generator"].transformer
        transformer.proj_out = nn.Linear(7, 64, device="meta")

    (problem,) = tiny(spoil).problems
    assert problem.startswith("generator.transformer.proj_out (weight (64, 7), bias (64,))")


def test_a_value_that_is_read_in_the_step_is_a_problem():
    def spoil(method: Method) -> None:
        transformer: Any = method.modules["generator"].transformer
        transformer.proj_out.register_forward_hook(lambda _, __, out: out * out.sum().item())

    (problem,) = tiny(spoil).problems
    assert problem.startswith("generator.transformer.proj_out") and "item" in problem


def test_the_report_says_whether_all_went_as_planned(shallow: str):
    said, shown = [], []
    recipe = load_recipe("magic141-finetune", ["--model.preset", shallow])
    assert report_rehearsal(recipe, said.append, shown.append)
    assert len(said) == 2
    (table,) = shown
    assert "goes as planned" in table and "kept after the forward, GiB" in table
