"""A teacher's sampler: the published one of its weights, unless the recipe or a flag says else."""

from pathlib import Path

import pytest
from safetensors.torch import save_file

from magicdistill.models.networks.backbones.teachers import TEACHERS
from magicdistill.models.networks.presets import PRESETS
from magicdistill.models.networks.weights import save_transformer
from magicdistill.models.objectives.config import TeacherSampler
from magicdistill.platform.config.recipe import Recipe, load_recipe, recipe_names
from magicdistill.platform.config.teacher_sampling import published_sampler, teacher_sampler
from magicdistill.platform.export.pretrained_model import find_pretrained
from tests.networks import network

KINDS = {kind.name: kind for kind in TEACHERS}
SAID = ("num_steps", "shift", "guidance", "true_guidance", "image_start")
PUBLISHED = [word for field in SAID for word in (f"--evaluation.teacher.{field}", "null")]
TOKEN_REPLACE = {"in_channels": 4, "image_condition_type": "token_replace", "guidance_embeds": True}


def tiny(*flags: str) -> Recipe:
    return load_recipe("portrait-tiny", list(flags))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small teacher of the layout that HunyuanVideo-I2V is published in."""
    save_transformer(network(**TOKEN_REPLACE), tmp_path / "teacher")
    return tmp_path / "teacher"


def test_recipes_of_magic141_sample_their_teacher_as_the_table_says() -> None:
    kind = KINDS["Magic141"]
    table = TeacherSampler(num_steps=kind.num_steps, shift=kind.shift, guidance=kind.guidance)
    guided = table.model_copy(update={"guidance": 4.5})  # as a text asks for
    names = [name for name in recipe_names() if name.startswith("magic141")]
    assert len(names) > 3
    assert {name: teacher_sampler(load_recipe(name)) for name in names} == {
        name: guided if "ti2v" in name else table for name in names
    }


def test_the_tiny_teacher_is_sampled_as_its_recipe_says() -> None:
    assert teacher_sampler(tiny()) == TeacherSampler(num_steps=28, shift=3)


def test_a_published_teacher_is_sampled_as_it_was_published(folder: Path) -> None:
    found = teacher_sampler(tiny("--model.teacher", str(folder), *PUBLISHED))
    assert found == TeacherSampler(num_steps=50, shift=7, guidance=6, image_start=0.001)


def test_a_teacher_that_is_not_here_yet_is_planned_as_its_preset_is_published() -> None:
    found = teacher_sampler(load_recipe("hunyuan-i2v-4step-8xh100"))
    assert found == TeacherSampler(num_steps=50, shift=7, guidance=6, image_start=0.001)


def test_a_flag_has_the_last_word_on_one_number_of_a_teacher(folder: Path) -> None:
    flags = ["--model.teacher", str(folder), *PUBLISHED, "--evaluation.teacher.shift", "17"]
    found = teacher_sampler(tiny(*flags))
    assert (found.num_steps, found.shift, found.guidance) == (50, 17, 6)


def test_a_teacher_in_a_file_is_sampled_as_the_layout_that_was_said(tmp_path: Path) -> None:
    shapes = PRESETS["nano"].transformer
    changes = {"in_channels": 16, "image_condition_type": "token_replace", "guidance_embeds": True}
    whole = shapes.backbone().network(**shapes.arguments() | changes)
    save_file(dict(whole.state_dict()), file := tmp_path / "teacher.safetensors")
    flags = ["--model.preset", "nano", "--model.teacher", str(file), *PUBLISHED]
    said = teacher_sampler(tiny(*flags, "--model.teacher_layout", "token_replace"))
    assert said == TeacherSampler(num_steps=50, shift=7, guidance=6, image_start=0.001)


def test_both_scales_of_skyreels_are_given_also_to_a_teacher_without_the_input() -> None:
    config = {"in_channels": 32, "out_channels": 16, "image_condition_type": None}
    config |= {"_class_name": KINDS["SkyReels-V1 I2V"].network}
    with_input, without = (
        published_sampler(config | {"guidance_embeds": embeds}) for embeds in (True, False)
    )
    assert with_input is not None and without is not None
    assert (with_input.guidance, with_input.cfg(embeds=True)) == (1, 6)
    assert without.cfg(embeds=False) == 6


def test_a_published_teacher_without_a_recipe_is_sampled_as_published(folder: Path) -> None:
    vae = Path(__file__).parents[4] / "assets" / "portrait-tiny" / "vae"
    found = find_pretrained(str(folder), vae=str(vae)).sampler
    assert (found.num_steps, found.shift, found.guidance) == (50, 7, 6)
    assert find_pretrained(str(folder), vae=str(vae)).changed(num_steps=4).sampler.num_steps == 4


def test_weights_of_no_published_kind_have_no_published_sampler() -> None:
    assert published_sampler({"_class_name": "OtherTransformer"}) is None
