"""The sampler of a teacher: what its weights were published with, and what a recipe says else."""

from collections.abc import Mapping
from typing import Any

from magicdistill.models.networks.backbones.teachers import find_teacher
from magicdistill.models.objectives.config import TeacherSampler, TeacherSamplerConfig
from magicdistill.platform.config.recipe import Recipe


def teacher_sampler(recipe: Recipe) -> TeacherSampler:
    """Return the many-step sampler of a recipe's teacher.

    Weights that are missing are taken for those of the preset: a plan is made without them. Weights
    of no published kind, and a training from random ones, have the sampler of Magic141.
    """
    said = recipe.evaluation.teacher if recipe.evaluation else TeacherSamplerConfig()
    bucket = recipe.data.bucket
    config = recipe.model.teacher_config
    if config is None and recipe.model.teacher is not None:
        shapes = recipe.model.shapes.transformer
        config = {"_class_name": shapes.class_name} | shapes.arguments()
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
