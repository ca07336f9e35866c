"""The other expert of a network that works at some noise levels alone.

Wan 2.2 I2V-A14B is two such networks. One of them makes no video: what samples asks here for the
other one.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from magicdistill.models.locations import CONFIG, PIPELINE, find_weights
from magicdistill.models.paths import PathError
from magicdistill.platform.config.recipe import Recipe, load_stored
from magicdistill.platform.config.validation import RecipeError

TRANSFORMER, LOW_NOISE = "transformer", "transformer_2"
"""Folders of a pipeline of diffusers: the transformer, or the expert for high noise levels, and the
one for low levels."""
BOUNDARY = 0.9
"""Noise level at which the experts of Wan 2.2 I2V-A14B take turns. Known: its pipeline's index."""
FIELD = "model.other_expert"
Levels = tuple[float, float]
"""Smallest and largest noise level of a network."""
ALL_LEVELS: Levels = (0.0, 1.0)


@dataclass(frozen=True)
class OtherExpert:
    """The network that predicts at the noise levels that another one is not for."""

    weights: Path
    levels: Levels
    """Noise levels of the network beside which it works."""

    def __str__(self) -> str:
        start, end = self.levels
        return f"{self.weights} outside {start:g} to {end:g}"


def low_noise_beside(transformer: Path) -> Path | None:
    """Return the folder of the other expert beside one for high noise levels, if there is one."""
    return _beside(transformer) if transformer.name == TRANSFORMER else None


def boundary_beside(transformer: Path) -> float:
    """Return the noise level at which a pipeline's experts take turns, by its index or as usual."""
    index = transformer.parent / PIPELINE
    found = json.loads(index.read_text()).get("boundary_ratio") if index.is_file() else None
    return BOUNDARY if found is None else found


def take_turns(high: Levels, low: Levels) -> bool:
    """Tell whether two networks have all noise levels between them, each its own."""
    return low[0] == 0 < low[1] == high[0] < high[1] == 1


def other_expert(
    recipe: Recipe, weights: str | Path | None, named: str | None = None
) -> OtherExpert | None:
    """Return what predicts where the weights of a recipe are not for; None where they are for all.

    A recipe's `method.interval` says what its networks are for. The other expert is the one that is
    `named`, else the one beside the `weights`, else the one beside the teacher. With the whole
    interval it is the low-noise expert of the pipeline that the weights are in, if they are.

    Raises RecipeError where there is none, or it is for other noise levels or another sampler.
    """
    levels, own = recipe.method.noise_levels, _folder(weights)
    if levels == ALL_LEVELS:
        if named is not None:
            raise RecipeError(
                f"{FIELD} {named}: method.interval is 0 to 1, which leaves it no step; give "
                "method.interval min or max, or leave it out"
            )
        low = own and low_noise_beside(own)
        return OtherExpert(low, (boundary_beside(low), 1.0)) if low else None
    start, end = levels
    if start > 0 and end < 1:
        raise RecipeError(
            f"method.interval {start:g} to {end:g}: only two experts make a video together; give "
            "min 0 or max 1, or set evaluation to null"
        )
    teacher = _folder(recipe.model.teacher)
    for field, folder in (("model.teacher", teacher), ("--model", own)):
        beside = folder and _beside(folder)
        if folder and beside and (folder.name == TRANSFORMER) != (end == 1):
            raise RecipeError(
                f"{field} {folder}: it is the expert for other noise levels than method.interval "
                f"{start:g} to {end:g}; give {beside}"
            )
    if named is not None:
        return OtherExpert(_fitting(recipe, named, teacher), levels)
    found = (own and _beside(own)) or (teacher and _beside(teacher))
    if not found:
        way_on = "lay both side by side, as transformer and transformer_2"
        if recipe.model.other_expert is None:
            way_on += f", or give {FIELD} the model folder of the other student's run"
        raise RecipeError(
            f"model.teacher {recipe.model.teacher}: the network of method.interval {start:g} to "
            f"{end:g} makes no video alone, and beside this one is no other expert; {way_on}"
        )
    return OtherExpert(found, levels)


def expert_problem(recipe: Recipe) -> str | None:
    """Return why a run could not be evaluated for want of the other expert, if so.

    Weights that are named and missing are no problem here.
    """
    model = recipe.model
    if recipe.evaluation is None and model.other_expert is None:
        return None
    if model.other_expert is None and model.teacher and _folder(model.teacher) is None:
        return None
    try:
        other_expert(recipe, None, model.other_expert)
        if recipe.evaluation is not None and _folder(model.teacher) is not None:
            other_expert(recipe, model.teacher)
    except RecipeError as error:
        return str(error)
    except (FileNotFoundError, PathError):
        pass
    return None


def _folder(location: str | Path | None) -> Path | None:
    """Return the folder of weights, or None where there are none yet."""
    try:
        return None if location is None else find_weights(str(location), "model.teacher")
    except (FileNotFoundError, PathError):
        return None


def _beside(transformer: Path) -> Path | None:
    names = {TRANSFORMER: LOW_NOISE, LOW_NOISE: TRANSFORMER}
    other = transformer.parent / names.get(transformer.name, "")
    return other if transformer.name in names and (other / CONFIG).is_file() else None


def _fitting(recipe: Recipe, named: str, teacher: Path | None) -> Path:
    """Return the folder of an expert that a recipe names, which fits the recipe's own.

    The recipe of its run tells; in an export of two experts it is that of the first.
    """
    found = find_weights(named, FIELD)
    if found == teacher:
        raise RecipeError(
            f"{FIELD} {named}: it is model.teacher itself; give the expert for the other levels"
        )
    stored = found.parent / "recipe.yaml"
    if found.name == LOW_NOISE or not stored.is_file():
        return found
    other, own = load_stored(stored).method, recipe.method
    pair = sorted((own.noise_levels, other.noise_levels), reverse=True)
    if not take_turns(*pair):
        (start, end), (low, high) = own.noise_levels, other.noise_levels
        raise RecipeError(
            f"{FIELD} {named}: its run has method.interval {low:g} to {high:g}, and this one "
            f"{start:g} to {end:g}; give a run whose interval meets it"
        )
    if other.trained_sampler != own.trained_sampler:
        raise RecipeError(
            f"{FIELD} {named}: its run has method.sampler {other.trained_sampler}, and this one "
            f"{own.trained_sampler}; give both the same"
        )
    return found
