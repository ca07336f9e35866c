"""Who takes part in an evaluation, as the command line names them."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from magicdistill.models.paths import local_path
from magicdistill.platform.config.experts import other_expert
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.config.teacher_sampling import teacher_sampler
from magicdistill.platform.config.validation import RecipeError
from magicdistill.platform.evaluation.contestants import Contestant, StockPipeline, VideoFolder
from magicdistill.platform.inference.variants import REAL, Variant, variants
from magicdistill.platform.runs.find_model import RECIPE, find_model
from magicdistill.platform.runs.run_directory import RunDirectory, resolve_root

SAMPLER_KEYS = {"steps": "num_steps", "guidance": "guidance", "shift": "shift"}
PIPELINE_KEYS = ("steps", "guidance", "fps")


def line_up(
    recipe: Recipe, models: Sequence[str], pipelines: Sequence[str], videos: Sequence[str]
) -> tuple[list[Variant | Contestant], Path]:
    """Return all that take part, and the folder of their scores.

    A single model without a name stands beside its teacher, and its scores lie in its run. Models
    with names, pipelines and folders of videos stand beside each other alone; what is measured of
    them lies in one folder of the runs, so that a table that gets another contestant measures that
    one only.

    Raises:
        FileNotFoundError: if a model does not exist.
        RecipeError: if a name is given twice, something is written in another way, or one of two
            experts lacks the other.
    """
    found: list[Variant | Contestant] = []
    folder = resolve_root(recipe.runs) / "evaluations" / recipe.name
    for model in models:
        if "=" in model and not Path(local_path(model)).exists():
            found.append(_named(recipe, model))
            continue
        student, own = find_model(recipe, model)
        found += variants(recipe, student)
        folder = own if len(models) == 1 and not (pipelines or videos) else folder
    for text in pipelines:
        name, place, options = parse("pipeline", text, PIPELINE_KEYS)
        found.append(StockPipeline(name, _folder(place), options))
    for text in videos:
        name, place, _ = parse("videos", text, ())
        found.append(VideoFolder(name, _folder(place)))
    taken = Counter([REAL, *(way.name for way in found)])
    if twice := [name for name, count in taken.items() if count > 1]:
        raise RecipeError(f"the name {twice[0]} is given twice: each row of the table has its own")
    return found, folder


def parse(flag: str, text: str, keys: Sequence[str]) -> tuple[str, str, dict[str, float]]:
    """Return name, place and settings of `NAME=PLACE[,key=number...]`.

    Raises:
        RecipeError: if it is written otherwise.
    """
    name, equals, rest = text.partition("=")
    place, *settings = rest.split(",")
    pairs = [setting.partition("=") for setting in settings]
    form = "".join(f"[,{key}=NUMBER]" for key in keys)
    wrong = RecipeError(f"--{flag} {text}: give NAME=DIR{form}")
    if (
        not (equals and name and place)
        or "/" in name
        or not {key for key, _, _ in pairs} <= {*keys}
    ):
        raise wrong
    try:
        return name, place, {key: float(value) for key, _, value in pairs}
    except ValueError:
        raise wrong from None


def _named(recipe: Recipe, text: str) -> Variant:
    name, place, settings = parse("model", text, tuple(SAMPLER_KEYS))
    weights, _ = find_model(recipe, place)
    run = weights.parent
    own = RunDirectory(run).recipe() if (run / RECIPE).is_file() else recipe
    sampler = own.method.trained_sampler or teacher_sampler(own)
    changes = {SAMPLER_KEYS[key]: value for key, value in settings.items()}
    try:
        sampler = type(sampler).model_validate(sampler.model_dump() | changes)
    except ValidationError as error:
        raise RecipeError(f"--model {text}: {error.errors()[0]['msg']}") from None
    beside = other_expert(own, weights, own.model.other_expert)
    return Variant(name, str(weights), sampler, beside)


def _folder(place: str) -> Path:
    return Path(local_path(place)).absolute()
