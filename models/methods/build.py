"""The networks that methods start from: teacher, student, VAE, an earlier stage's generator."""

from pathlib import Path

from diffusers import ModelMixin

from magicdistill.models.locations import find_weights
from magicdistill.models.networks.autoencoder.vae import VideoVae, build_autoencoder
from magicdistill.models.networks.backbones.base import BackboneConfig
from magicdistill.models.networks.backbones.registry import backbone_of, family_of, lora_targets
from magicdistill.models.networks.config import LoraConfig
from magicdistill.models.networks.lora import add_lora
from magicdistill.models.networks.placement import WHOLE, Placement
from magicdistill.models.networks.presets import ModelConfig
from magicdistill.models.networks.student import Student
from magicdistill.models.networks.transformer import (
    build_transformer,
    copy_transformer,
    load_transformer,
    sharing_weights,
)


def student(model: ModelConfig, placement: Placement, *, takes_guidance: bool) -> Student:
    """Build a copy of the teacher beside its frozen original."""
    original = teacher(model, placement)
    return Student(copy_of(original, placement, takes_guidance=takes_guidance), original)


def copy_of(transformer: ModelMixin, placement: Placement, *, takes_guidance: bool) -> ModelMixin:
    """Copy a transformer, and add the guidance scale as an input where asked for."""
    copied = copy_transformer(transformer, placement)
    if takes_guidance:
        backbone_of(copied).add_guidance(placement)
    return copied


def lora_student(
    base: ModelMixin, lora: LoraConfig, model: ModelConfig, placement: Placement
) -> ModelMixin:
    """Return a LoRA on the weights of the teacher `base`, which both then hold.

    Where the recipe goes on from an earlier stage, its weights are the frozen ones.
    """
    first = model.generator
    own = sharing_weights(base) if first is None else trained(first, model, placement)
    return with_lora(own, lora)


def with_lora(transformer: ModelMixin, lora: LoraConfig) -> ModelMixin:
    """Freeze a transformer, and add a LoRA to the linears that the recipe names."""
    add_lora(transformer, lora.rank, lora_targets(family_of(transformer), lora.targets))
    return transformer


def untrained_generator(model: ModelConfig, lora: LoraConfig | None) -> ModelMixin:
    """Return the network that a generator is trained as; with a LoRA its frozen weights count."""
    if lora is None:
        return teacher(model)
    first = model.generator
    return with_lora(teacher(model) if first is None else trained(first, model), lora)


def teacher(model: ModelConfig, placement: Placement = WHOLE) -> ModelMixin:
    """Load the teacher, or build it with random weights where the recipe names none."""
    shapes = model.shapes.transformer
    if model.teacher is None:
        return build_transformer(shapes, placement)
    path = find_weights(model.teacher, "model.teacher")
    return load_transformer(path, shapes, placement, model.teacher_layout)


def trained(location: str, model: ModelConfig, placement: Placement = WHOLE) -> ModelMixin:
    """Load the generator of an earlier stage."""
    path = find_weights(location, "model.generator")
    return load_transformer(path, model.shapes.transformer, placement)


def unsaid(path: Path, model: ModelConfig) -> tuple[BackboneConfig | None, str | None]:
    """Return the shapes and the layout of weights to sample, where they do not say them.

    A folder of diffusers says both. A file has the recipe's shapes, and the teacher's layout.
    """
    if path.is_dir():
        return None, None
    return model.shapes.transformer, model.teacher_layout


def vae(model: ModelConfig) -> VideoVae:
    """Load the VAE, or build it with random weights where the recipe names none."""
    if model.vae is None:
        return VideoVae(build_autoencoder(model.shapes.vae))
    return VideoVae.load(find_weights(model.vae, "model.vae"))
