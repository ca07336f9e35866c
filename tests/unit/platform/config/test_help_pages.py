"""Help: every flag and every alternative has a sentence, every page shows what it is for."""

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from magicdistill.models.config import Config
from magicdistill.platform.config.command_line import description_of
from magicdistill.platform.config.help_pages import (
    all_sections,
    flags,
    page,
    root,
    sections,
    summary,
)
from magicdistill.platform.config.overrides import apply_overrides
from magicdistill.platform.config.recipe import Recipe, load_recipe
from magicdistill.platform.config.validation import RecipeError, registry_of, sections_in
from magicdistill.platform.launch.cli import JobFlags

JOBS = Path(__file__).parents[4] / "jobs"


def forms() -> Iterator[type[Config]]:
    """Yield the recipe and the forms of the jobs."""
    yield Recipe
    yield JobFlags
    for path in sorted(JOBS.glob("*.py")):
        module = import_module(f"magicdistill.jobs.{path.stem}")
        for name in ("Flags", "Arguments"):
            if hasattr(module, name):
                yield getattr(module, name)


def reachable(cls: type[Config], seen: dict[type[Config], None]) -> None:
    """Collect a configuration with all that its fields can hold."""
    if cls in seen:
        return
    seen[cls] = None
    for field in cls.model_fields.values():
        registry: Any = registry_of(field) or ()
        for inner in (*sections_in(field.annotation), *registry):
            reachable(inner, seen)


def configurations() -> list[type[Config]]:
    seen: dict[type[Config], None] = {}
    for form in forms():
        reachable(form, seen)
    return list(seen)


def is_sentence(text: str | None) -> bool:
    return (
        bool(text) and bool(re.fullmatch(r"[A-Z0-9`\"].*\.", text, re.S)) and len(text.split()) > 2
    )


CONFIGURATIONS = configurations()


@pytest.mark.parametrize("cls", CONFIGURATIONS, ids=lambda cls: cls.__name__)
def test_every_flag_and_every_alternative_has_a_sentence(cls: type[Config]) -> None:
    assert is_sentence(summary(cls)), f"{cls.__name__}: {summary(cls)!r}"
    silent = {
        name: description_of(cls, name)
        for name, field in cls.model_fields.items()
        if not is_sentence(description_of(cls, name))
        and not any(sections_in(field.annotation))  # the section's own docstring says it
    }
    assert silent == {}


def test_the_sentences_of_all_kinds_of_jobs_are_checked() -> None:
    names = {cls.__name__ for cls in CONFIGURATIONS}
    assert {"Flags", "Arguments", "MagicGtMethod", "Vfhq", "Faces", "TorchEngineConfig"} <= names


def test_a_page_shows_the_flags_of_its_section_alone(recipe: Recipe) -> None:
    text = page(root(recipe), "method.score_sigma", 80)
    found = re.findall(r"^  (--\S+)", text, re.M)
    assert found == [f"--method.score_sigma.{name}" for name in ("shift", "min", "max")]
    assert "Largest noise level. Now 0.98." in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_of_prose_is_wider_than_the_page(recipe: Recipe, width: int) -> None:
    text = page(root(recipe), "all", width)
    wide = [line for line in text.splitlines() if len(line) > width]
    assert [line for line in wide if len(line.split()) > 1] == []


def test_everything_has_every_flag_once(recipe: Recipe) -> None:
    text = page(root(recipe), "all", 120)
    for section in all_sections(root(recipe)):
        for flag in flags(section):
            assert len(re.findall(rf"^  {re.escape(flag.name)}( |$)", text, re.M)) == 1, flag.name


def test_each_section_inside_is_shown_or_listed(recipe: Recipe) -> None:
    text = page(root(recipe), "data", 80)
    for section in sections(next(s for s in sections(root(recipe)) if s.name == "data")):
        assert section.name in text
    assert "--help data.policy " in text and "--data.bucket.num_frames INT" in text


def test_alternatives_are_described(recipe: Recipe) -> None:
    assert re.search(r"^  finetune +Flow matching on data", page(root(recipe), "method", 80), re.M)
    assert re.search(r"^  hdtf +HDTF", page(root(recipe), "data", 80), re.M)
    assert re.search(r"^  black +Longest run", page(root(recipe), "data.measures", 80), re.M)


def test_limits_show_how_they_are_set_and_what_holds(recipe: Recipe) -> None:
    flag = ["--data.policy.limits.portrait.motion.px.min", "0.5"]
    text = page(root(apply_overrides(recipe, flag, program="toy")), "data.policy", 80)
    assert flag[0] in text
    assert re.search(r"^  motion.px +0.5, null$", text, re.M)
    assert re.search(r"^  exposure.luma +20.0, 235.0$", text, re.M)


def test_a_flag_has_a_page_of_its_own(recipe: Recipe) -> None:
    assert page(root(recipe), "method.alpha_weak", 80).startswith("  --method.alpha_weak FLOAT\n")
    assert "null, 0.7" in page(root(recipe), "health.drift", 80)
    assert "limits.{all,portrait" in page(root(recipe), "data.policy.limits", 80)


def test_a_section_that_the_recipe_leaves_out_shows_its_keys(recipe: Recipe) -> None:
    text = page(root(recipe), "pairs", 80)
    assert "leaves this section out" in text and "--pairs.num_actors INT" in text


def test_an_unknown_topic_is_refused_with_the_nearest_one(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match=r"did you mean method\.sampler\?"):
        page(root(recipe), "method.samler", 80)


def test_the_bounds_of_limits_are_flags_of_any_score_and_mixture() -> None:
    base = load_recipe("portrait-tiny-data")
    names = ["portrait.text.area.max", "anime.motion.px.min", "all.exposure.luma.min"]
    given = [word for name in names for word in (f"--data.policy.limits.{name}", "0.5")]
    limits = apply_overrides(base, given, program="toy").model_dump()["data"]["policy"]["limits"]
    assert limits == {
        "all": {"exposure.luma": {"min": 0.5, "max": 245.0}},
        "portrait": {"text.area": {"min": None, "max": 0.5}},
        "anime": {"motion.px": {"min": 0.5, "max": None}},
    }


@pytest.mark.parametrize("name", ["portrait.text.aera.max", "portait.text.area.max"])
def test_a_limit_on_what_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="limits"):
        load_recipe("portrait-tiny-data", [f"--data.policy.limits.{name}", "0.5"])


def test_a_former_flag_is_refused_with_the_present_one(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match=r"--health\.drift\.most; it is --health\.drift\.max now"):
        apply_overrides(recipe, ["--health.drift.most=2"], program="toy")
