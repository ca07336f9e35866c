"""Former keys: a recipe is told the present one, an old run reads as it did."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from magicdistill.platform.config.overrides import RecipeError
from magicdistill.platform.config.recipe import load_recipe, load_stored
from magicdistill.platform.config.renamed import RENAMED, present_name, with_former_names
from magicdistill.platform.config.sections import Thresholds
from magicdistill.platform.runs.run_directory import RunDirectory


def test_a_recipe_with_a_former_key_is_told_the_present_one(base: Path) -> None:
    base.write_text(base.read_text() + "health: {drift: {most: 2}}\n")
    with pytest.raises(
        RecipeError, match=r"unknown key health\.drift\.most; it is health\.dri"
    ) as e:
        load_recipe(base)
    assert "it is health.drift.max now" in str(e.value)


def test_the_recipe_of_an_old_run_is_read_under_the_present_names(
    base: Path, tmp_path: Path
) -> None:
    flags = ["--health.drift.max", "2", "--method.score_sigma.min", "0.1"]
    recipe = load_recipe(base, flags)
    run = RunDirectory.create(tmp_path / "runs", recipe)
    former = with_former_names(yaml.safe_load(run.recipe_path.read_text()))
    assert former["health"]["drift"] == {"least": None, "most": 2.0}
    assert former["method"]["score_sigma"] == {"shift": 5.0, "low": 0.1, "high": 0.98}
    run.recipe_path.write_text(yaml.safe_dump(former))
    assert run.recipe() == load_stored(run.recipe_path) == recipe
    assert run.recipe().health.drift == Thresholds(max=2)
    with pytest.raises(RecipeError, match="it is health"):
        load_recipe(run.recipe_path)


def test_former_names_keep_the_order_of_keys(base: Path) -> None:
    values = load_recipe(base).model_dump(mode="json")
    former: Any = with_former_names(values)
    assert list(former) == list(values)
    assert list(former["health"]["drift"]) == ["least", "most"]


@pytest.mark.parametrize(
    ("name", "present"),
    [
        ("health.drift.least", "health.drift.min"),
        ("method.cfg_distillation.guidance.high", "method.cfg_distillation.guidance.max"),
        ("health.least", None),
        ("health.drift.min", None),
        ("seed", None),
    ],
)
def test_only_former_keys_have_a_present_name(name: str, present: str | None) -> None:
    assert present_name(name) == present


def test_no_present_name_is_a_former_one() -> None:
    for former, last in RENAMED.items():
        assert present_name(f"{former.rpartition('.')[0]}.{last}") is None
