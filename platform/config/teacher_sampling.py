"""The sampler of a teacher: what its weights were published with, and what a recipe says else."""

from collections.abc import Mapping
from typing import Any

from magicdistill.models.locations import find_weights
from magicdistill.models.networks.backbones.registry import config_of
from magicdistill.models.networks.backbones.teachers import find_teacher
from magicdistill.models.networks.presets import ModelConfig
from magicdistill.models.objectives.config import TeacherSampler, TeacherSamplerConfig
from magicdistill.models.paths import PathError
from magicdistill.platform.config.recipe import Recipe


def teacher_sampler(recipe: Recipe) -> TeacherSampler:
    """Return the many-step sampler of a recipe's teacher.

    Weights of no published kind, and those that are missing, have that of Magic141.
    """
    said = recipe.evaluation.teacher if recipe.evaluation else TeacherSamplerConfig()
    bucket = recipe.data.bucket
    config = teacher_config(recipe.model)
    own = None if config is None else published_sampler(config, bucket.height * bucket.width)
    return said.over(own or TeacherSampler())


def published_sampler(
    config: Mapping[str, Any], pixels: int | None = None
) -> TeacherSampler | None:
    """Return the sampler with which weights of a diffusers configuration were published.

    `pixels` are those of a frame. None for weights of no published kind.
    """
    kind = find_teacher(config, pixels)
    if kind is None:
        return None
    return TeacherSampler(
        num_steps=kind.num_steps,
        shift=kind.shift,
        guidance=kind.embedded if config.get("guidance_embeds") else kind.guidance,
        true_guidance=kind.guidance,
        image_start=kind.image_start,
    )


def teacher_config(model: ModelConfig) -> dict[str, Any] | None:
    """Return the diffusers configuration of a recipe's teacher, also of one in a file.

    None where there is no teacher, or its file leaves a question.
    """
    if model.teacher is None:
        return None
    if (found := config_of(model.teacher, "model.teacher")) is not None:
        return found
    try:
        path = find_weights(model.teacher, "model.teacher")
    except (FileNotFoundError, PathError):
        return None
    if path.is_dir():
        return None
    from magicdistill.models.networks.state_dicts import checkpoint_config  # imports torch

    shapes = model.shapes.transformer
    try:
        _, arguments = checkpoint_config(path, shapes, model.teacher_layout)
    except ValueError:
        return None
    return {"_class_name": shapes.class_name} | arguments
