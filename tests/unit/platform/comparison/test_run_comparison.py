"""Comparisons: which runs they mean, what identifies a run, and what the report says."""

import json
import math
from pathlib import Path

import pytest

from magicdistill.platform.comparison.comparison_recipe import (
    COMPARISONS,
    ComparisonRecipe,
    check_names,
    describe_plan,
    load_comparison,
    plan,
    tuning_plan,
)
from magicdistill.platform.comparison.comparison_report import (
    Tuned,
    markdown,
    spread,
    table,
    tuning_table,
)
from magicdistill.platform.comparison.run_comparison import digest
from magicdistill.platform.config.overrides import RecipeError
from magicdistill.platform.config.recipe import Recipe, recipe_names
from magicdistill.platform.runs.run_directory import RunDirectory
from tests.comparisons import comparison, groups, judged, path

__all__ = ["comparison", "groups", "path"]


def lr(recipe: Recipe) -> float:
    return recipe.schedule.optimizers["generator"].lr


def test_every_comparison_of_the_project_is_valid() -> None:
    for name in recipe_names(COMPARISONS):
        assert load_comparison(name).name == name
    assert "portrait-tiny-compare" in recipe_names(COMPARISONS)


def test_methods_run_with_every_seed_at_their_tuned_rate(comparison: ComparisonRecipe) -> None:
    runs = plan(comparison, {"magic": 0.5}, only=["teacher", "magic"])
    assert [(run.label, run.recipe.seed) for run in runs] == [
        ("teacher", 0), ("teacher", 1), ("magic", 0), ("magic", 1),
    ]  # fmt: skip
    assert [lr(run.recipe) for run in runs] == [1e-4, 1e-4, 0.5, 0.5]
    assert {run.recipe.schedule.num_cycles for run in runs} == {40}
    assert runs[0].recipe.method.model_dump()["sampler"]["num_steps"] == 28


def test_ablations_keep_the_rate_of_their_method(comparison: ComparisonRecipe) -> None:
    none, same = plan(comparison, {"magic": 0.5}, only=["alpha"])
    assert (none.label, none.recipe.name) == ("alpha/none", "toy-compare-alpha-none-s0")
    assert none.recipe.method.model_dump()["alpha_weak"] == 0
    assert lr(none.recipe) == lr(same.recipe) == 0.5


def test_trials_are_shortened_and_try_each_rate_of_what_is_trained(
    comparison: ComparisonRecipe,
) -> None:
    trials = tuning_plan(comparison)
    assert {method: list(found) for method, found in trials.items()} == {
        "magic": [1e-4, 1e-3], "lcm": [1e-4, 1e-3],
    }  # fmt: skip
    recipe = trials["lcm"][1e-3].recipe
    generator = recipe.schedule.optimizers["generator"]
    assert (recipe.schedule.num_cycles, generator.decay_steps, generator.lr) == (100, 100, 1e-3)
    assert (recipe.seed, recipe.schedule.batch_size) == (9, 4)


def test_an_ablation_alone_needs_the_trials_of_its_method(comparison: ComparisonRecipe) -> None:
    assert list(tuning_plan(comparison, only=["alpha"])) == ["magic"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("alpha_weak: 0", "alpha_weka: 0", r"alpha/none(.|\n)*did you mean method\.alpha_weak"),
        ("seeds:", "sedes:", "unknown key sedes; did you mean seeds"),
        ("of: magic", "of: magci", "magci is unknown; did you mean magic"),
        ("name: lcm", "name: lmc", "'lmc' is no method"),
        ("name: lcm}", "name: lcm}\n    model: {vae: other}", "a comparison has one VAE"),
    ],
)
def test_a_mistake_is_refused_before_anything_runs(
    path: Path, old: str, new: str, said: str
) -> None:
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(RecipeError, match=said):
        load_comparison(path)


def test_only_takes_names_that_there_are(comparison: ComparisonRecipe) -> None:
    check_names(comparison, ["alpha", "lcm"])
    with pytest.raises(RecipeError, match="--only alhpa is unknown; did you mean alpha"):
        check_names(comparison, ["alhpa"])


def test_the_listing_has_every_run_and_what_it_changes(comparison: ComparisonRecipe) -> None:
    lines = describe_plan(comparison).splitlines()
    assert lines[0].startswith("12 runs") and len(lines) == 2 + 12
    assert lines[1] == "all change: schedule.num_cycles 40"
    assert lines[-2].split() == [
        "alpha/none",
        "seed",
        "0",
        "method.name",
        "magic",
        "method.alpha_weak",
        "0",
    ]


def test_a_run_is_known_by_its_recipe_and_its_weights(
    comparison: ComparisonRecipe, tmp_path: Path
) -> None:
    planned, *_ = plan(comparison, {}, only=["magic"])

    def at(weights: str) -> Recipe:
        (tmp_path / weights).mkdir()
        (tmp_path / weights / "config.json").write_text(json.dumps(weights))
        model = planned.recipe.model.model_copy(update={"teacher": str(tmp_path / weights)})
        return planned.recipe.model_copy(update={"model": model})

    recipe = at("teacher")
    assert digest(recipe.model_copy(update={"name": "other"})) == digest(recipe)
    assert digest(recipe.model_copy(update={"seed": 5})) != digest(recipe)
    assert digest(at("better teacher")) != digest(recipe)


@pytest.mark.parametrize(
    ("values", "digits", "text"),
    [
        ([1.0, 2.0, 3.0], 2, "2.00 ± 1.00"),
        ([0.5], 3, "0.500"),
        ([math.nan], 2, ""),
        ([math.nan, 1.0, 2.0], 1, "1.5 ± 0.7"),
        ([math.inf, 1.0], 1, "inf"),
        ([28, 28], 0, "28"),
    ],
)
def test_a_spread_is_a_mean_with_the_sample_deviation(
    values: list[float], digits: int, text: str
) -> None:
    assert spread(values, digits) == text


def test_a_table_has_means_over_seeds_and_no_empty_columns(
    groups: dict[str, list[RunDirectory]],
) -> None:
    teacher, magic, *_ = table(groups)
    assert (teacher["FD (proxy)"], magic["FD (proxy)"]) == ("0.150 ± 0.071", "0.350 ± 0.071")
    assert (teacher["training s"], magic["training s"]) == ("", "8")
    assert (magic["FD last ÷ lowest"], magic["seeds"]) == ("3.00 ± 0.00", "2")
    assert (magic["sampler"], magic["gap ratio"]) == ("euler", "0.70 ± 0.00")
    [alone] = table({"teacher": groups["teacher"]})
    assert "gap ratio" not in alone
    assert markdown([{"": "magic", "NFE": "4"}]) == "|  | NFE |\n| --- | --- |\n| magic | 4 |"


def test_the_best_rate_is_that_of_the_smallest_distance(comparison: ComparisonRecipe) -> None:
    trials = tuning_plan(comparison)["magic"]
    runs = {
        rate: judged(trial.recipe, distance)
        for (rate, trial), distance in zip(trials.items(), (math.inf, 0.2), strict=True)
    }
    tuned = Tuned("magic", runs)
    assert tuned.best == 1e-3
    assert tuning_table([tuned]) == [
        {"": "magic", "0.0001": "inf", "0.001": "0.200", "chosen": "0.001"}
    ]
