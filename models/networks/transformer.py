"""The video transformer as a velocity field."""

import copy
from pathlib import Path

from diffusers import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from magicdistill.models.networks.backbones.backbone import Arguments, Backbone
from magicdistill.models.networks.backbones.base import BackboneConfig
from magicdistill.models.networks.backbones.registry import backbone_of
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.placement import WHOLE, Placement
from magicdistill.models.networks.state_dicts import (
    checkpoint_config,
    checkpoint_parts,
    copy_parameters,
    fill,
    public,
)


def build_transformer(shapes: BackboneConfig, placement: Placement = WHOLE) -> ModelMixin:
    """Build the image-to-video network with random weights."""
    with placement.building():
        return shapes.backbone().network(**shapes.arguments())


def load_transformer(
    path: Path | str,
    shapes: BackboneConfig | None = None,
    placement: Placement = WHOLE,
    layout: str | None = None,
) -> ModelMixin:
    """Load any checkpoint that `checkpoint_parts` reads, in float32, for image-to-video.

    A text-to-video checkpoint gets the channels of the image prior, with zero weights. A file has
    no configuration: it needs `shapes`, and `layout` where its tensors do not tell how the image
    enters. Memory holds one whole parameter at a time, and what the
    placement keeps. Raises as `checkpoint_config`, `checkpoint_parts` and `fill` do.
    """
    path = Path(path)
    backbone, arguments = checkpoint_config(path, shapes, layout)
    parts = checkpoint_parts(path, backbone)
    arguments, parts = backbone.for_image_to_video(arguments, parts)
    transformer = _empty(backbone.network, arguments, placement)
    fill(transformer, parts, placement)
    return transformer


def copy_transformer(transformer: ModelMixin, placement: Placement = WHOLE) -> ModelMixin:
    """Return a trainable transformer with a copy of the weights."""
    copied = _empty(type(transformer), public(transformer.config), placement)
    copy_parameters(transformer, copied, placement)
    return copied


def sharing_weights(transformer: ModelMixin) -> ModelMixin:
    """Return a second transformer whose parameters are those of the first one, not copies.

    Its modules are its own, so that each of the two may get a LoRA and an engine.
    """
    return copy.deepcopy(transformer, {id(p): p for p in transformer.parameters()})


def _empty(network: type[ModelMixin], arguments: Arguments, placement: Placement) -> ModelMixin:
    with no_init_weights(), placement.building():
        return network(**arguments)


class VelocityModel(nn.Module):
    """Wraps the transformer as a velocity field v(x_sigma, sigma, conditions)."""

    def __init__(self, transformer: ModelMixin) -> None:
        super().__init__()
        self.transformer = transformer

    @property
    def backbone(self) -> Backbone:
        """What the transformer's family answers about it."""
        return backbone_of(self.transformer)

    @property
    def guidance_embeds(self) -> bool:
        """Whether the network takes the guidance scale as an input."""
        return self.backbone.takes_guidance(self.transformer.config)

    def forward(
        self,
        x_sigma: Float[Tensor, "b c f h w"],
        sigma: Float[Tensor, " b"],
        conditions: Conditions,
        guidance: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b c f h w"]:
        """Predict v in float32, whatever the dtype of the weights."""
        return self.backbone.velocity(x_sigma, sigma, conditions, guidance)
