"""A comparison in one file: methods, seeds, the search for learning rates, and ablations."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import reduce
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from magicdistill.models.config import Config
from magicdistill.models.paths import LocalPath
from magicdistill.platform.config.overrides import RecipeError, Values, merge, validate
from magicdistill.platform.config.recipe import COMPARISONS, Recipe, find_recipe, read_values
from magicdistill.platform.config.sections import ScheduleConfig
from magicdistill.platform.config.validation import demand_folder_name
from magicdistill.platform.planning.preflight import demand_trainable


class TuningConfig(Config):
    """The search for each method's learning rate: one shortened run for each rate."""

    rates: tuple[float, ...] = Field(min_length=1)
    role: str = "generator"
    """Role whose learning rate is searched."""
    seed: int = 1000
    """Seed of the trials; no compared run has it."""
    share: float = Field(default=0.5, gt=0, le=1)
    """Length of a trial as a share of the method's own schedule."""
    overrides: Values = Field(default_factory=dict)
    """Other changes of a trial; held-out clips of its own keep those of the comparison unseen."""


class AblationConfig(Config):
    """Variants of one method, at that method's rate."""

    of: str
    """Name of the method that is varied."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    overrides: Values = Field(default_factory=dict)
    """Changes that all variants share."""
    variants: dict[str, Values]
    """The changes of each variant, by its name."""


class ComparisonRecipe(Config):
    """Everything that decides what is compared. Overrides are written as in a recipe."""

    name: str
    """Name of the comparison's folder; by default the name of the file."""
    runs: LocalPath = "runs"
    """Folder that receives the comparison and its runs."""
    base: LocalPath
    """Recipe that all runs start from."""
    overrides: Values = Field(default_factory=dict)
    """Changes of the base for all runs."""
    methods: dict[str, Values] = Field(min_length=1)
    """The changes of each method, by the name of its row in the table."""
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    tuning: TuningConfig | None = None
    """How learning rates are searched; null takes the rates of the recipe."""
    ablations: dict[str, AblationConfig] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        return demand_folder_name(name)

    @model_validator(mode="after")
    def _ablations_are_of_methods(self) -> Self:
        for name, ablation in self.ablations.items():
            if ablation.of not in self.methods:
                raise ValueError(f"ablations.{name}.of: {_unknown(ablation.of, self.methods)}")
        return self


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison."""

    label: str
    """Name in tables, such as `lcm`, `tuning/lcm/0.0001` or `alpha_weak/0.5`."""
    recipe: Recipe
    changes: Values
    """Its changes of the base recipe, for readers."""


def load_comparison(name_or_path: str | Path, given: Values | None = None) -> ComparisonRecipe:
    """Load a comparison by its name in `jobs/recipes/comparisons` or by the path of a YAML file.

    `given` replaces fields. Raises RecipeError for an unknown key or a wrong value, including those
    of the runs that it would start.
    """
    path = find_recipe(name_or_path, folder=COMPARISONS)
    values = read_values(path, ComparisonRecipe) | (given or {})
    comparison = validate(ComparisonRecipe, values, str(path))
    runs = plan(comparison, {})
    if len({planned.recipe.model.vae for planned in runs}) > 1:
        raise RecipeError(f"{path}: model.vae differs between runs; a comparison has one VAE")
    trials = (trial for found in tuning_plan(comparison).values() for trial in found.values())
    for planned in (*runs, *trials):
        try:
            demand_trainable(planned.recipe)
        except RecipeError as error:
            raise RecipeError(f"{path}, {planned.label}: {error}") from None
    return comparison


def base_recipe(comparison: ComparisonRecipe) -> Recipe:
    """Return the recipe that all runs start from."""
    values = read_values(find_recipe(comparison.base))
    named = {"name": comparison.name, "runs": comparison.runs}
    return validate(Recipe, merge(Recipe, values, comparison.overrides) | named, comparison.name)


def check_names(comparison: ComparisonRecipe, only: Collection[str]) -> None:
    """Raise RecipeError where `only` names neither a method nor an ablation."""
    known = [*comparison.methods, *comparison.ablations]
    for name in set(only) - set(known):
        raise RecipeError(f"--only {_unknown(name, known)}")


def plan(
    comparison: ComparisonRecipe, rates: Mapping[str, float], only: Collection[str] = ()
) -> list[PlannedRun]:
    """Return the compared runs and the ablations, at the tuned `rates` of the methods.

    `only` restricts them to methods and ablations of these names.
    """
    runs = []
    for method, changes in comparison.methods.items():
        if not only or method in only:
            at_rate = [changes, *_rate(comparison, rates.get(method))]
            runs += [_resolve(comparison, method, seed, at_rate) for seed in comparison.seeds]
    for name, ablation in comparison.ablations.items():
        if only and name not in only:
            continue
        of, rate = comparison.methods[ablation.of], _rate(comparison, rates.get(ablation.of))
        for variant, changes in ablation.variants.items():
            updates = [of, *rate, ablation.overrides, changes]
            label = f"{name}/{variant}"
            runs += [_resolve(comparison, label, seed, updates) for seed in ablation.seeds]
    return runs


def tuning_plan(
    comparison: ComparisonRecipe, only: Collection[str] = ()
) -> dict[str, dict[float, PlannedRun]]:
    """Return, for each trained method that `plan` needs, the run that tries each rate."""
    tuning = comparison.tuning
    if tuning is None:
        return {}
    wanted = set(only) | {comparison.ablations[a].of for a in comparison.ablations if a in only}
    return {
        method: {rate: _trial(comparison, tuning, method, rate) for rate in tuning.rates}
        for method in comparison.methods
        if (not only or method in wanted) and is_trained(comparison, method)
    }


def is_trained(comparison: ComparisonRecipe, method: str) -> bool:
    """Tell whether a method trains anything."""
    planned = _resolve(comparison, method, 0, [comparison.methods[method]])
    return bool(planned.recipe.method.roles)


def _trial(
    comparison: ComparisonRecipe, tuning: TuningConfig, method: str, rate: float
) -> PlannedRun:
    updates = [comparison.methods[method], *_rate(comparison, rate), tuning.overrides]
    label = f"tuning/{method}/{rate:g}"
    whole = _resolve(comparison, label, tuning.seed, updates).recipe.schedule
    return _resolve(
        comparison, label, tuning.seed, [*updates, {"schedule": _shortened(whole, tuning.share)}]
    )


def _shortened(schedule: ScheduleConfig, share: float) -> Values:
    """Return the changes that shorten a schedule and its decays to a share of their length."""
    return {
        "num_cycles": max(1, round(schedule.num_cycles * share)),
        "optimizers": {
            role: {"decay_steps": max(1, round(optimizer.decay_steps * share))}
            for role, optimizer in schedule.optimizers.items()
            if optimizer.decay_steps is not None  # a share follows by itself
        },
    }


def _rate(comparison: ComparisonRecipe, rate: float | None) -> list[Values]:
    if rate is None or comparison.tuning is None:
        return []
    return [{"schedule": {"optimizers": {comparison.tuning.role: {"lr": rate}}}}]


def _resolve(
    comparison: ComparisonRecipe, label: str, seed: int, updates: list[Values]
) -> PlannedRun:
    """Build a run's recipe; an error says which run is meant."""
    base = read_values(find_recipe(comparison.base))
    values = reduce(_merge, [comparison.overrides, *updates], base)
    slug = re.sub(r"[^\w.]+", "-", label)
    named = {"name": f"{comparison.name}-{slug}-s{seed}", "seed": seed, "runs": comparison.runs}
    recipe = validate(Recipe, values | named, f"{comparison.name}, {label}")
    return PlannedRun(label, recipe, reduce(_deep, updates, {}))


def _merge(values: Values, update: Values) -> Values:
    return merge(Recipe, values, update)


def _deep(values: Values, update: Values) -> Values:
    """Merge nested changes, without the rules for the sections of a recipe."""
    both = {
        key: _deep(values[key], update[key])
        for key in values.keys() & update.keys()
        if isinstance(values[key], dict) and isinstance(update[key], dict)
    }
    return values | update | both


def _unknown(name: str, known: Collection[str]) -> str:
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{name} is unknown; {hint}There are {', '.join(known)}"


def describe_plan(comparison: ComparisonRecipe, only: Collection[str] = ()) -> str:
    """Return the runs with what they change in the base recipe, one on a line."""
    trials = [run for found in tuning_plan(comparison, only).values() for run in found.values()]
    runs = [*trials, *plan(comparison, {}, only)]
    rows = [(run.label, str(run.recipe.seed), _describe(run.changes)) for run in runs]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{a:{widths[0]}}  seed {b:{widths[1]}}  {c}".rstrip() for a, b, c in rows]
    shared = _describe(comparison.overrides) or "nothing"
    found = "; each method then takes its best rate" if trials else ""
    head = f"{len(runs)} runs of {comparison.base}, {len(trials)} of them trials{found}"
    return "\n".join([head, f"all change: {shared}", *lines])


def _describe(value: Any, prefix: str = "") -> str:
    """Return changes as `section.field value`, separated by spaces."""
    if not isinstance(value, dict):
        return f"{prefix} {value}"
    return "  ".join(
        _describe(inner, f"{prefix}.{key}" if prefix else key) for key, inner in value.items()
    )
