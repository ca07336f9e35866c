"""Find a trained model: where its parts are, its shapes and its sampler."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from magicdistill.data_pipeline.config import Bucket
from magicdistill.models.locations import (
    CONFIG,
    PROJECT,
    demand_supported,
    find_weights,
    is_int8,
)
from magicdistill.models.networks.backbones.registry import family_in
from magicdistill.models.networks.backbones.teachers import find_teacher as find_teacher_kind
from magicdistill.models.networks.conditioning.encoder_folders import image_folders
from magicdistill.models.objectives.config import SamplerConfig
from magicdistill.models.paths import local_path
from magicdistill.platform.config.experts import (
    ALL_LEVELS,
    BOUNDARY,
    boundary_beside,
    low_noise_beside,
)
from magicdistill.platform.config.recipe import RECIPES, Recipe, load_recipe, load_stored
from magicdistill.platform.config.teacher_sampling import published_sampler, teacher_sampler
from magicdistill.platform.config.validation import RecipeError
from magicdistill.platform.planning.preflight import demand_fitting_weights
from magicdistill.platform.runs.logs import ExplainedError
from magicdistill.platform.runs.run_directory import resolve_root

ASSETS = PROJECT / "assets"
STUDENT_STEPS = (1, 4)
"""Numbers of steps of the students that come with the project."""
MODEL = "model"
"""Folder of a run that holds its finished generator."""
Dtype = Literal["fp32", "bf16", "int8"]
LARGE = Bucket(num_frames=129, height=544, width=960)
"""Shape that a model of no published kind, and without a recipe, generates: that of Magic141."""


@dataclass(frozen=True)
class Pretrained:
    """Everything that decides a video except its own inputs."""

    transformer: Path
    vae: Path
    buckets: tuple[Bucket, ...]
    """Shapes that the model was trained on."""
    sampler: SamplerConfig
    num_text_tokens: int
    """Number of tokens in the zero embedding of the null prompt."""
    encoders: Path | None
    """Folder of the text encoders; without it only the null prompt can be used."""
    dtype: Dtype | None = None
    """Dtype of the transformer; None is bf16 on GPUs and fp32 on CPUs."""
    low_noise: Path | None = None
    """Folder of the expert for low noise levels, where the transformer is that for high ones."""
    boundary: float = BOUNDARY
    """Noise level from which on the transformer works where there are two experts."""
    offload: bool = False
    """Keep the transformer in host memory and copy each layer to the GPU while it computes."""
    image_token_stride: int | None = None
    """Of how many image tokens of the first frame one stands before the text; None gives none."""
    knows_shapes: bool = True
    """Whether a recipe says on what shapes it was trained."""

    def changed(
        self, size: tuple[int, int, int] | None = None, **sampler: float | None
    ) -> "Pretrained":
        """Return the model with a single shape (frames, height, width) or with another sampler.

        Raises ExplainedError if a value is not possible.
        """
        given = {name: value for name, value in sampler.items() if value is not None}
        buckets = self.buckets
        try:
            if size is not None:
                shape = dict(zip(("num_frames", "height", "width"), size, strict=True))
                buckets = (Bucket.model_validate(shape | {"fps": buckets[0].fps}),)
            values = self.sampler.model_dump() | given
            changed = type(self.sampler).model_validate(values)
            return replace(self, buckets=buckets, sampler=changed)
        except ValidationError as error:
            first = error.errors()[0]
            raise ExplainedError(f"{first['loc'][0]} {first['input']}: {first['msg']}") from None

    def never_made(self, size: tuple[int, int, int]) -> str | None:
        """Return a warning if the model was trained on other shapes (frames, height, width)."""
        trained = [(one.num_frames, one.height, one.width) for one in self.buckets]
        if size in trained or not self.knows_shapes:  # nobody knows what others are trained on
            return None
        known, asked = (
            ", ".join(" x ".join(map(str, shape)) for shape in shapes)
            for shapes in (trained, [size])
        )
        return (
            f"warning: --size {asked} (frames x height x width): the model was trained on {known}, "
            "and of another shape it may make blur or noise"
        )


def find_pretrained(
    location: str, *, runs: str = "runs", vae: str | None = None, encoders: str | None = None
) -> Pretrained:
    """Find a model and how it is sampled.

    `location` is a run (a folder, or a name in `runs`), its `model` folder, an exported or any
    other diffusers folder, a whole pipeline of diffusers, or a name under assets/ such as
    `student-4step`. Without a recipe the VAE and the encoders are taken from `vae` and `encoders`
    or from the folders beside it. Raises ExplainedError if there is no such model, its backbone is
    not registered, or there is no VAE for it.
    """
    transformer = _find_transformer(location, runs)
    recipe = _recipe_of(transformer)
    try:
        family_in(transformer)
    except ValueError as error:
        raise ExplainedError(f"--model {location}: {error}") from None
    text = transformer.parent if (transformer.parent / "text_encoder").is_dir() else None
    if text is None and recipe and recipe.data.prompts:
        text = Path(recipe.data.prompts.encoder)
    text = Path(encoders) if encoders else text
    return Pretrained(
        transformer,
        _find_vae(transformer, recipe, vae),
        recipe.data.buckets if recipe else (_published_bucket(transformer),),
        _sampler(transformer, recipe),
        recipe.data.null_text.num_tokens if recipe else 1,
        text,
        "int8" if is_int8(transformer) else None,
        low_noise_beside(transformer),
        boundary_beside(transformer),
        image_token_stride=_image_token_stride(transformer, recipe, text),
        knows_shapes=recipe is not None,
    )


def lone_expert(model: Pretrained) -> str | None:
    """Return a warning if the model is one of two experts, and makes the other's steps as well."""
    recipe = _recipe_of(model.transformer)
    levels = recipe.method.noise_levels if recipe else ALL_LEVELS
    if levels == ALL_LEVELS or model.low_noise is not None:
        return None
    return (
        f"warning: {model.transformer} was trained on noise levels from {levels[0]:g} to "
        f"{levels[1]:g} alone and makes all steps here; export both experts' runs by "
        "jobs/export.py --low_noise and sample that"
    )


def shipped_for(num_steps: int | None) -> str:
    """Return the name of the shipped student for a number of steps, by default four."""
    if num_steps is None:
        return "student-4step"
    return next((f"student-{n}step" for n in STUDENT_STEPS if num_steps <= n), "teacher")


def find_student(model: Pretrained, num_steps: int) -> Pretrained:
    """Return the shipped student that was trained for this number of steps.

    For a model that was not shipped, return the model itself with that number of steps.
    """
    beside = model.transformer.with_name(f"student-{num_steps}step")
    if model.transformer in _students() and (beside / CONFIG).is_file():
        found = find_pretrained(str(beside))
        model = replace(
            found,
            encoders=model.encoders,
            dtype=model.dtype,
            offload=model.offload,
            image_token_stride=model.image_token_stride,
        )
    return model.changed(num_steps=num_steps)


def find_teacher(model: Pretrained) -> Pretrained:
    """Return the teacher of a student, with the many-step sampler of its evaluation.

    Raises ExplainedError if no recipe names the teacher, or it does not exist.
    """
    recipe = _recipe_of(model.transformer)
    if recipe is None or recipe.model.teacher is None:
        raise ExplainedError(f"{model.transformer} has no recipe that names its teacher")
    try:
        demand_fitting_weights(recipe, trained=False)
        teacher = find_weights(recipe.model.teacher, "model.teacher").resolve()
    except (FileNotFoundError, RecipeError) as error:
        raise ExplainedError(str(error)) from None
    return replace(
        model,
        transformer=teacher,
        sampler=_sampler(teacher, recipe),
        low_noise=low_noise_beside(teacher),
        boundary=boundary_beside(teacher),
    )


def _find_transformer(location: str, runs: str) -> Path:
    unfinished = None
    for path in _candidates(location, runs):
        for folder in (path, path / MODEL, path / "transformer"):
            if (folder / CONFIG).is_file():
                demand_supported(folder, "transformer", "--model")
                return folder.resolve()
        demand_supported(path, "transformer", "--model")
        if (path / "recipe.yaml").is_file():
            unfinished = path
    if unfinished:
        raise ExplainedError(
            f"--model {location}: the run {unfinished} has no finished model; write one from its "
            f"last checkpoint with python jobs/export.py {unfinished} --to DIR and give DIR"
        )
    names = ", ".join(str(path.parent.relative_to(ASSETS)) for path in _shipped())
    raise ExplainedError(
        f"--model {location}: neither a run (in {resolve_root(runs)}) nor a folder of diffusers "
        f"with a {CONFIG}, nor one of {names}"
    )


def _candidates(location: str, runs: str) -> Iterator[Path]:
    path = Path(local_path(location))
    yield from (path, resolve_root(runs) / path, ASSETS / path)
    if not path.is_absolute():
        yield from sorted(ASSETS.glob(f"*/{location}"))


def _shipped() -> list[Path]:
    """Return the configurations of the transformers that come with the project."""
    return [path for path in sorted(ASSETS.glob(f"*/*/{CONFIG}")) if path.parent.name != "vae"]


def _students() -> list[Path]:
    return [p.parent.resolve() for p in _shipped() if p.parent.name.startswith("student-")]


def _recipe_of(transformer: Path) -> Recipe | None:
    """Return the recipe of a run, an export or a shipped model."""
    for folder in (transformer, transformer.parent):
        if (folder / "recipe.yaml").is_file():
            return load_stored(folder / "recipe.yaml")
    if transformer.parents[1] != ASSETS.resolve():
        return None
    name = transformer.parent.name
    own = f"{name}-{transformer.name.removeprefix('student-')}"  # such as portrait-tiny-1step
    names = [own, name] if transformer in _students() else [name]
    return next((load_recipe(n) for n in names if (RECIPES / f"{n}.yaml").is_file()), None)


def _find_vae(transformer: Path, recipe: Recipe | None, vae: str | None) -> Path:
    beside = transformer.parent / "vae"
    if vae is None and recipe is None and (beside / CONFIG).is_file():
        return beside
    location = vae or (recipe and recipe.model.vae)
    if location is None:
        raise ExplainedError(f"{transformer} has no VAE beside it: name its folder with --vae")
    try:
        return find_weights(location, "vae")
    except FileNotFoundError as error:
        raise ExplainedError(f"{error}; name the folder with --vae") from None


def _image_token_stride(transformer: Path, recipe: Recipe | None, text: Path | None) -> int | None:
    """Return how the recipe gives image tokens; without one, as published for such encoders."""
    if recipe is not None:
        return recipe.data.prompts and recipe.data.prompts.image_token_stride
    if text is None or not all((text / name).is_dir() for name in image_folders(text)):
        return None
    config = json.loads((transformer / CONFIG).read_text(encoding="utf-8"))
    return family_in(transformer).image_token_stride(config)


def _sampler(transformer: Path, recipe: Recipe | None) -> SamplerConfig:
    """Return the sampler that a generator was trained for, or that of its teacher's evaluation.

    Without a recipe it is the one that such weights were published with.
    """
    if recipe is None:
        config = json.loads((transformer / CONFIG).read_text())
        bucket = _published_bucket(transformer)
        return published_sampler(config, bucket.height * bucket.width) or SamplerConfig()
    return teacher_sampler(recipe) if _is_teacher(transformer, recipe) else sampler_of(recipe)


def _published_bucket(transformer: Path) -> Bucket:
    """Return the shape of the videos that the makers of such weights publish.

    Weights of one configuration for several sizes are taken for those of the smallest.
    """
    kind = find_teacher_kind(json.loads((transformer / CONFIG).read_text()))
    if kind is None:
        return LARGE
    frames, height, width, fps = kind.clip
    return Bucket(num_frames=frames, height=height, width=width, fps=fps)


def sampler_of(recipe: Recipe) -> SamplerConfig:
    """Return the sampler that the generator of a recipe is trained for, by default many steps."""
    return recipe.method.trained_sampler or teacher_sampler(recipe)


def _is_teacher(transformer: Path, recipe: Recipe) -> bool:
    if recipe.model.teacher is None:
        return False
    try:
        teacher = find_weights(recipe.model.teacher, "model.teacher")
    except FileNotFoundError:
        return False
    return teacher.resolve() == transformer
