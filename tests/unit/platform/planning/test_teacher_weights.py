"""A teacher that its preset contradicts is refused with what differs, and its inputs are planned.

Every entry asks `demand_fitting_weights`, so that each says the same.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel, ModelMixin, WanTransformer3DModel
from safetensors.torch import save_file

from magicdistill.models.methods.registry import METHODS
from magicdistill.models.networks.presets import PRESETS
from magicdistill.platform.config.recipe import Recipe, load_recipe
from magicdistill.platform.config.validation import RecipeError
from magicdistill.platform.launch.cli import parse_job
from magicdistill.platform.planning.memory import count_parameters
from magicdistill.platform.planning.plan import plan
from magicdistill.platform.planning.preflight import (
    demand_fitting_weights,
    demand_weights,
    weight_problems,
)

BIG = "magic141-4step-8xh100"
Write = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path) -> Write:
    """Write the configuration of a network in full size, which needs no weights to be planned."""

    def write(network: type[ModelMixin] = HunyuanVideoTransformer3DModel, **changes: Any) -> str:
        arguments = PRESETS["magic141-13b"].transformer.arguments()
        own: dict[str, Any] = arguments if network is HunyuanVideoTransformer3DModel else {}
        small = {"num_layers": 1, "num_single_layers": 1} if own else {}
        given: dict[str, Any] = own | small | changes
        with torch.device("meta"):  # the sizes of one block of each kind are written by hand
            network(**given).save_config(tmp_path / "teacher")
        config = tmp_path / "teacher" / "config.json"
        found = json.loads(config.read_text())
        kept = {name: own[name] for name in small if name not in changes}
        config.write_text(json.dumps(found | kept))
        return str(tmp_path / "teacher")

    return write


def big(teacher: str, *flags: str, recipe: str = BIG) -> Recipe:
    return load_recipe(recipe, ["--model.teacher", teacher, *flags])


def test_a_teacher_of_another_family_is_refused_with_both_names(folder: Write) -> None:
    recipe = big(folder(WanTransformer3DModel, num_layers=2))
    with pytest.raises(RecipeError, match=r"model\.teacher: .*WanTransformer3DModel"):
        demand_fitting_weights(recipe)


def test_a_teacher_of_other_sizes_is_refused_with_each_that_differs(folder: Write) -> None:
    recipe = big(folder(num_layers=2, text_embed_dim=64))
    with pytest.raises(RecipeError) as refused:
        demand_fitting_weights(recipe)
    assert "num_layers 2 instead of 20, text_embed_dim 64 instead of 4096" in str(refused.value)
    assert "unlike model.preset magic141-13b" in str(refused.value)


@pytest.mark.parametrize("job", ["plan", "distill"])
@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_a_plan_and_a_dry_run_refuse_a_teacher_that_does_not_fit(
    job: str, flags: list[str], folder: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = folder(WanTransformer3DModel, num_layers=2)
    purpose: Any = "plan" if job == "plan" else "train"
    arguments = ["--model.teacher", teacher, *flags]
    with pytest.raises(SystemExit) as ended:
        parse_job(job, default_recipe=BIG, description="", arguments=arguments, purpose=purpose)
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert "WanTransformer3DModel" in said.err and "fits" not in said.err


def test_a_teacher_that_sees_no_picture_is_trained_before_it_is_distilled(folder: Write) -> None:
    teacher = folder(in_channels=16, image_condition_type=None, guidance_embeds=True)
    with pytest.raises(RecipeError, match=r"text-to-video .* train it with jobs/finetune\.py"):
        demand_fitting_weights(big(teacher))
    demand_fitting_weights(big(teacher), trained=False)
    demand_fitting_weights(big(teacher, recipe="magic141-finetune"))


LAYOUTS = {
    "token_replace": {"in_channels": 16, "image_condition_type": "token_replace"},
    "skyreels": {"in_channels": 32, "image_condition_type": None},
    "latent_concat": {"in_channels": 33, "image_condition_type": "latent_concat"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_plan_has_the_inputs_of_the_teachers_own_configuration(
    layout: str, folder: Write
) -> None:
    preset = PRESETS["magic141-13b"].transformer
    recipe = big(folder(**LAYOUTS[layout], guidance_embeds=True))
    demand_fitting_weights(recipe)
    found = recipe.model.shapes.transformer.arguments()
    assert found == preset.arguments() | LAYOUTS[layout] | {"guidance_embeds": True}


@pytest.fixture
def plans(tmp_path: Path) -> dict[bool, Any]:
    """Recipes of small teachers without and with the guidance input, sampled at scale 2."""
    shapes = PRESETS["nano"].transformer
    found = {}
    for embeds in (False, True):
        arguments: dict[str, Any] = shapes.arguments() | {"guidance_embeds": embeds}
        network = HunyuanVideoTransformer3DModel(**arguments)
        network.save_config(tmp_path / str(embeds))
        flags = ["--model.preset", "nano", "--model.teacher", str(tmp_path / str(embeds))]
        found[embeds] = load_recipe("portrait-tiny", [*flags, "--evaluation.teacher.guidance", "2"])
    return found


def test_the_guidance_input_of_a_teacher_is_counted_and_saves_its_second_forward(
    plans: dict[bool, Any],
) -> None:
    numels = {
        embeds: sum(part.total for part in count_parameters(recipe.method, recipe.model))
        for embeds, recipe in plans.items()
    }
    costs = {embeds: plan(recipe).evaluation_operations for embeds, recipe in plans.items()}
    assert numels[True] > numels[False]
    assert costs[True] < costs[False]


def test_a_student_is_guided_only_where_its_teachers_weights_take_the_scale(
    plans: dict[bool, Any],
) -> None:
    def problems(recipe: Recipe, name: str) -> list[str]:
        sampler = {"num_steps": 4, "guidance": 6}
        method: Any = METHODS.get(name)
        method = method.model_validate({"name": name, "sampler": sampler})
        fitted = method.fitted_to(recipe.model.shapes.transformer)
        return list(fitted.problems(recipe.model, 80))

    for name in ("dmd", "lcm"):
        said = [line for line in problems(plans[False], name) if "sampler.guidance" in line]
        assert len(said) == 1 and "these weights have no input for it; give 1" in said[0]
        assert not any("sampler.guidance" in line for line in problems(plans[True], name))


def write_file(path: Path, preset: str, **changes: Any) -> str:
    shapes = PRESETS[preset].transformer
    network = HunyuanVideoTransformer3DModel(**shapes.arguments() | changes)
    save_file(dict(network.state_dict()), path)
    return str(path)


def test_a_teacher_in_a_file_is_compared_with_its_preset_before_a_run(tmp_path: Path) -> None:
    file = write_file(tmp_path / "teacher.safetensors", "nano")
    flags = ["--model.teacher", file, "--model.preset"]
    demand_fitting_weights(load_recipe("portrait-tiny", [*flags, "nano"]))
    recipe = load_recipe("portrait-tiny", [*flags, "portrait-tiny"])
    with pytest.raises(RecipeError, match=r"tensors otherwise than model\.preset portrait-tiny"):
        demand_fitting_weights(recipe)


def test_a_teacher_in_a_file_that_two_layouts_fit_is_asked_for_before_a_run(tmp_path: Path) -> None:
    changes = {"in_channels": 16, "image_condition_type": None}
    flags = ["--model.preset", "nano", "--model.teacher"]
    flags += [write_file(tmp_path / "teacher.safetensors", "nano", **changes)]
    with pytest.raises(RecipeError, match=r"say model\.teacher_layout text_to_video or token_rep"):
        demand_weights(load_recipe("portrait-tiny", flags))
    said = load_recipe("portrait-tiny", [*flags, "--model.teacher_layout", "token_replace"])
    assert dict(weight_problems(said)) == {}
    said = load_recipe("portrait-tiny", [*flags, "--model.teacher_layout", "text_to_video"])
    assert "takes no first frame" in dict(weight_problems(said))["model.teacher"]


def test_a_teacher_that_is_no_file_of_weights_is_refused_in_a_sentence(tmp_path: Path) -> None:
    for name in ("teacher.pt", "teacher.safetensors"):
        (tmp_path / name).write_text("no weights")
        recipe = load_recipe("portrait-tiny", ["--model.teacher", str(tmp_path / name)])
        with pytest.raises(RecipeError, match=r"cannot be read as weights .*; give a diffusers"):
            demand_weights(recipe)
