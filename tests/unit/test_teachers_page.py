"""docs/teachers.md says what the code does: kinds of weights, numbers of samplers, recipe lines."""

import re
from pathlib import Path

import pytest

from magicdistill.models.networks.backbones.hunyuan_video.layouts import LAYOUTS, TEXT_TO_VIDEO
from magicdistill.models.networks.backbones.registry import find_family
from magicdistill.models.networks.backbones.teachers import TEACHERS
from magicdistill.platform.config.recipe import RECIPES, load_recipe, recipe_names
from magicdistill.platform.planning.preflight import demand_trainable

PAGE = (Path(__file__).parents[2] / "docs" / "teachers.md").read_text()
WEIGHTS_HEADING, SAMPLER_HEADING = "| weights | trains |", "| teacher | steps |"


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table that begins like that."""
    table = PAGE[PAGE.index(heading) :].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table]


LINES = {row[0]: re.findall(r"`(--recipe [^`]+)`", row[-1]) for row in rows(WEIGHTS_HEADING)}
PRESENT = [line for lines in LINES.values() for line in lines if line.split()[1] in recipe_names()]
NEWER = {  # recipes whose backbone may be registered later than this page was written
    "hunyuan15-i2v-4step-8xh100": "HunyuanVideo15Transformer3DModel",
    "wan21-i2v-4step-32xh100": "WanTransformer3DModel",
    "wan22-i2v-4step-32xh100": "WanTransformer3DModel",
}


def test_every_number_of_a_teachers_sampler_is_the_codes() -> None:
    told = [
        [f"{x:g}" for x in (k.num_steps, k.shift, k.embedded, k.guidance, k.image_start)]
        for k in TEACHERS
    ]
    assert [row[0] for row in rows(SAMPLER_HEADING)] == [kind.name for kind in TEACHERS]
    assert [row[1:] for row in rows(SAMPLER_HEADING)] == told
    for kind in TEACHERS:
        assert f"- {kind.name}: {kind.source}." in PAGE


def test_every_teachers_layout_and_family_has_a_row_of_weights() -> None:
    whole = "\n".join(LINES)
    assert {name for name in LAYOUTS if f"`{name}`" in whole} == set(LAYOUTS) - {TEXT_TO_VIDEO}
    assert "text to video" in whole
    families = (
        "Magic141",
        "HunyuanVideo-1.5",
        "HunyuanVideo-I2V",
        "SkyReels-V1",
        "Wan2.1",
        "Wan2.2",
    )
    for kind in TEACHERS:
        assert kind.name.split()[0].split("-I2V")[0] in whole, kind.name
    assert all(name in whole for name in families)


def test_every_row_of_teachers_has_all_columns() -> None:
    assert {len(row) for row in rows(WEIGHTS_HEADING)} == {8}
    for name, *cells in rows(WEIGHTS_HEADING):
        assert all(cells), name
        if "Magic141" not in name:
            assert cells[5].startswith("`hf download "), name


@pytest.mark.parametrize(
    "line",
    [line for found in LINES.values() for line in found if line.split()[1] in recipe_names()],
)
def test_a_teachers_recipe_line_is_one_that_jobs_take(line: str) -> None:
    _, name, *flags = line.split()
    recipe = load_recipe(name, flags)
    demand_trainable(recipe)
    location = recipe.model.teacher
    assert location is not None and location.startswith("data/weights/")


def test_a_teachers_recipe_exists_as_soon_as_its_backbone_does() -> None:
    named = {line.split()[1] for found in LINES.values() for line in found}
    absent = named - {path.stem for path in RECIPES.glob("*.yaml")}
    assert absent <= set(NEWER)
    assert [name for name in absent if find_family(NEWER[name]) is not None] == []


def test_weights_are_fetched_to_where_their_teachers_recipe_line_looks() -> None:
    """A recipe line's folder is below one that a command on the page fills."""
    filled = re.findall(r"--local-dir (data/weights/[\w-]+)", PAGE)
    for line in PRESENT:
        _, name, *flags = line.split()
        teacher = str(load_recipe(name, flags).model.teacher)
        if not teacher.endswith("/magic141"):  # which is not published
            assert teacher.startswith(tuple(filled)), line
