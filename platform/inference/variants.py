"""Ways to generate the same held-out clips: weights and a sampler."""

from dataclasses import dataclass
from pathlib import Path

from magicdistill.models.objectives.config import SamplerConfig
from magicdistill.platform.config.recipe import Recipe

REAL = "real"


@dataclass(frozen=True)
class Variant:
    """A way to generate: weights and a sampler; no weights are the real clips themselves."""

    name: str
    weights: str | None
    sampler: SamplerConfig


def variants(recipe: Recipe, student: Path) -> list[Variant]:
    """Return teacher with many steps, teacher with few Euler steps, and the student.

    Before a student of noise-data pairs comes the generator that makes them, also run like it.
    """
    assert recipe.evaluation is not None
    many = recipe.evaluation.teacher
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
    """Return the way of generating that the run itself is about."""
    return variants(recipe, student)[-1]
