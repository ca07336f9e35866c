"""Variants: pairs of weights and sampler that generate the same held-out clips."""

from dataclasses import dataclass
from pathlib import Path

from magicdistill.models.objectives.config import SamplerConfig
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.config.teacher_sampling import teacher_sampler

REAL = "real"


@dataclass(frozen=True)
class Variant:
    """Weights with a sampler; without weights, the real clips themselves."""

    name: str
    weights: str | None
    sampler: SamplerConfig


def variants(recipe: Recipe, student: Path) -> list[Variant]:
    """Return the teacher with many steps, the teacher with few Euler steps, and the student.

    For a student of noise-data pairs also the generator of the pairs, with its own sampler and
    with the student's.
    """
    assert recipe.evaluation is not None
    many = teacher_sampler(recipe)
    found = [Variant("teacher", recipe.model.teacher, many)]
    few = recipe.method.trained_sampler
    if few is None:
        return [Variant(recipe.method.makes, str(student), many)]
    names = dict.fromkeys(("euler", few.name))
    found += [
        Variant(name, recipe.model.teacher, few.model_copy(update={"name": name})) for name in names
    ]
    if recipe.pairs is not None:
        maker, steps = recipe.pairs.generator, recipe.pairs.sampler.num_steps
        found.append(Variant(f"{steps}-step", maker, recipe.pairs.sampler))
        found.append(Variant(f"{steps}-step cut", maker, few))
    return [*found, Variant("student", str(student), few)]


def own_variant(recipe: Recipe, student: Path) -> Variant:
    """Return the variant that the run itself trains."""
    return variants(recipe, student)[-1]
