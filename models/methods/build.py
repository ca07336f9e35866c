"""From configuration to a method with its networks."""

from diffusers import HunyuanVideoTransformer3DModel

from magicdistill.models.locations import find_weights
from magicdistill.models.methods.distribution_matching import DistributionMatching
from magicdistill.models.networks.autoencoder.vae import VideoVae, build_autoencoder
from magicdistill.models.networks.config import ModelConfig
from magicdistill.models.networks.critic import Critic
from magicdistill.models.networks.placement import WHOLE, Placement
from magicdistill.models.networks.student import Student, add_guidance_embedding
from magicdistill.models.networks.transformer import (
    VelocityModel,
    build_transformer,
    copy_transformer,
    load_transformer,
)
from magicdistill.models.objectives.cfg_distillation import CfgDistill
from magicdistill.models.objectives.config import (
    AdversarialPart,
    CfgDistillMethod,
    DistributionMatchingConfig,
    FinetuneMethod,
    LcmMethod,
    MethodConfig,
    VaeMethod,
)
from magicdistill.models.objectives.flow_matching import Finetune
from magicdistill.models.objectives.lcm import Lcm
from magicdistill.models.objectives.types import Method
from magicdistill.models.objectives.vae import VaeTraining


def build_method(config: MethodConfig, model: ModelConfig, placement: Placement = WHOLE) -> Method:
    """Build the networks of a method from the recipe's weights, where `placement` keeps them.

    Random initial weights come from torch's global generator: seed it on every rank alike.
    Raises ValueError for `euler`, whose generator is the teacher.
    """
    match config:
        case FinetuneMethod():
            return Finetune(config, VelocityModel(teacher(model, placement)))
        case LcmMethod():
            return Lcm(config, student(model, placement, takes_guidance=False))
        case CfgDistillMethod():
            return CfgDistill(config, student(model, placement, takes_guidance=True))
        case DistributionMatchingConfig():
            return distribution_matching(config, model, placement)
        case VaeMethod():
            return VaeTraining(config, vae(model))
        case _:
            raise ValueError(f"method.name {config.name} trains nothing")


def student(model: ModelConfig, placement: Placement, *, takes_guidance: bool) -> Student:
    """Build a copy of the teacher beside its frozen original."""
    original = teacher(model, placement)
    return Student(copy_of(original, placement, takes_guidance=takes_guidance), original)


def distribution_matching(
    config: DistributionMatchingConfig, model: ModelConfig, placement: Placement
) -> DistributionMatching:
    """Build generator and critic from one teacher."""
    base = teacher(model, placement)
    first = base if model.generator is None else trained(model.generator, model, placement)
    generator = copy_of(first, placement, takes_guidance=config.cfg_distillation is not None)
    adversarial = isinstance(config, AdversarialPart) and config.adversarial_weight > 0
    critic = Critic(base, config.lora, adversarial=adversarial, placement=placement)
    return DistributionMatching(config, VelocityModel(generator), critic)


def copy_of(
    transformer: HunyuanVideoTransformer3DModel, placement: Placement, *, takes_guidance: bool
) -> HunyuanVideoTransformer3DModel:
    """Copy a transformer, and add the guidance scale as an input where asked for."""
    copied = copy_transformer(transformer, placement)
    if takes_guidance:
        add_guidance_embedding(copied, placement)
    return copied


def teacher(model: ModelConfig, placement: Placement = WHOLE) -> HunyuanVideoTransformer3DModel:
    """Load the teacher, or build it with random weights where the recipe names none."""
    shapes = model.shapes.transformer
    if model.teacher is None:
        return build_transformer(shapes, placement)
    return load_transformer(find_weights(model.teacher, "model.teacher"), shapes, placement)


def trained(
    location: str, model: ModelConfig, placement: Placement = WHOLE
) -> HunyuanVideoTransformer3DModel:
    """Load the generator of an earlier stage."""
    path = find_weights(location, "model.generator")
    return load_transformer(path, model.shapes.transformer, placement)


def vae(model: ModelConfig) -> VideoVae:
    """Load the VAE, or build it with random weights where the recipe names none."""
    if model.vae is None:
        return VideoVae(build_autoencoder(model.shapes.vae))
    return VideoVae.load(find_weights(model.vae, "model.vae"))
