"""What recipes say of themselves, and which job each is for."""

from pathlib import Path

import pytest

from magicdistill.platform.config.overrides import RecipeError
from magicdistill.platform.config.recipe import COMPARISONS, RECIPES, load_recipe
from magicdistill.platform.config.recipe_list import TAKES, about, demand_job, format_list, listed

JOBS = Path(__file__).parents[4] / "jobs"
FILES = [*RECIPES.glob("*.yaml"), *COMPARISONS.glob("*.yaml")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_recipe_says_what_it_is_for(path: Path) -> None:
    found = about(path)
    assert found is not None and (JOBS / f"{found.job}.py").is_file()
    assert found.purpose[0].isupper() and found.purpose.endswith(".")
    assert found.hardware and found.time


def test_every_recipe_is_listed_by_its_own_job() -> None:
    jobs = ("distill", "finetune", "train_vae", "curate", "compare")
    names = [{recipe.name for recipe in listed(job) if recipe.about.job == job} for job in jobs]
    assert sorted(name for group in names for name in group) == sorted(p.stem for p in FILES)


def test_a_list_shows_recipes_that_fit_with_purpose_hardware_and_time() -> None:
    text = format_list("distill", "portrait-tiny", 80)
    assert "portrait-tiny  (taken where" in text and "magic141-lcm\n" in text
    assert "2 CPU cores · about a minute" in text
    assert "portrait-tiny-teacher\n" not in text and "nightly" not in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("name", "job", "owner"),
    [
        ("portrait-tiny-data", "distill", "jobs/curate.py"),
        ("portrait-tiny-teacher", "distill", "jobs/finetune.py"),
        ("portrait-tiny-compare", "distill", "jobs/compare.py"),
        ("portrait-tiny", "compare", "jobs/distill.py"),
        ("nightly", "plan", "jobs/curate.py"),
        ("vfhq", "evaluate", "jobs/evaluate.py --protocol vfhq"),
    ],
)
def test_a_recipe_of_another_job_is_answered_with_that_job(name: str, job: str, owner: str) -> None:
    with pytest.raises(RecipeError, match=rf"{name} is .*{owner}"):
        demand_job(name, job)


@pytest.mark.parametrize("job", sorted(TAKES))
def test_jobs_that_read_recipes_take_those_of_trainings(job: str) -> None:
    demand_job("portrait-tiny", job)
    demand_job("portrait-tiny-teacher", job)


def test_a_file_of_ones_own_fits_every_job_unless_it_says_otherwise(base: Path) -> None:
    demand_job(base, "train_vae")
    text = base.read_text()
    base.write_text(f"about: {{job: distill, purpose: P., hardware: H, time: T}}\n{text}")
    demand_job(base, "distill")
    with pytest.raises(RecipeError, match=r"is for jobs/distill\.py"):
        demand_job(base, "train_vae")


def test_what_a_recipe_is_about_is_no_part_of_the_run_and_not_inherited(
    base: Path, tmp_path: Path
) -> None:
    before, text = load_recipe(base), base.read_text()
    base.write_text(f"about: {{job: distill, purpose: P., hardware: H, time: T}}\n{text}")
    assert load_recipe(base) == before
    child = tmp_path / "child.yaml"
    child.write_text("extends: base.yaml\n")
    assert about(child) is None


def test_an_about_with_an_unknown_key_is_refused(base: Path) -> None:
    base.write_text("about: {job: distill, purpose: P., hardware: H, time: T, cost: 1}\n")
    with pytest.raises(RecipeError, match=r"unknown key about\.cost"):
        about(base)
