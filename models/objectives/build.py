"""From configuration to a method with its networks."""

import copy

from diffusers import HunyuanVideoTransformer3DModel

from magicdistill.models.networks.config import ModelConfig
from magicdistill.models.networks.critic import Critic
from magicdistill.models.networks.transformer import (
    VelocityModel,
    build_transformer,
    load_transformer,
)
from magicdistill.models.networks.vae import VideoVae, build_autoencoder
from magicdistill.models.networks.weights import find_weights
from magicdistill.models.objectives.config import FinetuneMethod, MagicMethod, MethodConfig
from magicdistill.models.objectives.flow_matching import Finetune
from magicdistill.models.objectives.magic import MagicDistillation
from magicdistill.models.objectives.types import Method
from magicdistill.models.objectives.vae import VaeTraining


def build_method(config: MethodConfig, model: ModelConfig) -> Method:
    """Build the networks of a method from the recipe's weights.

    Random initial weights come from torch's global generator: seed it on every rank alike.
    """
    if isinstance(config, FinetuneMethod):
        return Finetune(config, VelocityModel(teacher(model)))
    if isinstance(config, MagicMethod):
        base = teacher(model)
        generator = VelocityModel(copy.deepcopy(base))
        return MagicDistillation(
            config,
            generator,
            Critic(base, config.lora, adversarial=config.adversarial_weight > 0),
        )
    return VaeTraining(config, vae(model))


def teacher(model: ModelConfig) -> HunyuanVideoTransformer3DModel:
    """Load the teacher, or build it with random weights where the recipe names none."""
    if model.teacher is None:
        return build_transformer(model.shapes.transformer)
    return load_transformer(find_weights(model.teacher, "model.teacher"))


def vae(model: ModelConfig) -> VideoVae:
    """Load the VAE, or build it with random weights where the recipe names none."""
    if model.vae is None:
        return VideoVae(build_autoencoder(model.shapes.vae))
    return VideoVae.load(find_weights(model.vae, "model.vae"))
