"""Variants: pairs of weights and sampler that generate the same held-out clips."""

from dataclasses import dataclass
from pathlib import Path

from magicdistill.models.objectives.config import SamplerConfig
from magicdistill.platform.config.experts import OtherExpert, other_expert
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.config.teacher_sampling import teacher_sampler

REAL = "real"


@dataclass(frozen=True)
class Variant:
    """Weights with a sampler; without weights, the real clips themselves."""

    name: str
    weights: str | None
    sampler: SamplerConfig
    other: OtherExpert | None = None
    """What predicts at the noise levels that the weights are not for."""

    def __str__(self) -> str:
        beside = f" and {self.other}" if self.other else ""
        return f"{self.weights}{beside}, {self.sampler}"


def variants(recipe: Recipe, student: Path) -> list[Variant]:
    """Return the teacher with many steps, the teacher with few Euler steps, and the student.

    For a student of noise-data pairs also the generator of the pairs, with its own sampler and
    with the student's. Each has the other expert where it is one of two: the teacher that of the
    teacher, the student that of `model.other_expert`. Raises RecipeError as `other_expert` does.
    """
    assert recipe.evaluation is not None
    many, teacher = teacher_sampler(recipe), recipe.model.teacher
    of_teacher = other_expert(recipe, teacher) if teacher else None
    found = [Variant("teacher", teacher, many, of_teacher)]
    few = recipe.method.trained_sampler
    of_student = other_expert(recipe, student, recipe.model.other_expert)
    if few is None:
        return [Variant(recipe.method.makes, str(student), many, of_student)]
    names = dict.fromkeys(("euler", few.name))
    found += [
        Variant(name, teacher, few.model_copy(update={"name": name}), of_teacher) for name in names
    ]
    if recipe.pairs is not None:
        maker, steps = recipe.pairs.generator, recipe.pairs.sampler.num_steps
        found.append(Variant(f"{steps}-step", maker, recipe.pairs.sampler))
        found.append(Variant(f"{steps}-step cut", maker, few))
    return [*found, Variant("student", str(student), few, of_student)]


def own_variant(recipe: Recipe, student: Path) -> Variant:
    """Return the variant that the run itself trains."""
    return variants(recipe, student)[-1]
