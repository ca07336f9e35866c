"""The video transformer as a velocity field."""

from pathlib import Path
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from jaxtyping import Float
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from magicdistill.models.diffusion.flow import NUM_TRAIN_TIMESTEPS, per_sample
from magicdistill.models.networks.backbone import predict
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.config import TransformerConfig
from magicdistill.models.networks.placement import WHOLE, Placement
from magicdistill.models.networks.state_dicts import (
    checkpoint_config,
    checkpoint_parts,
    copy_parameters,
    fill,
    public,
    transformer_arguments,
    widened,
)


def build_transformer(
    shapes: TransformerConfig, placement: Placement = WHOLE
) -> HunyuanVideoTransformer3DModel:
    """Build the image-to-video network with random weights."""
    with placement.building():
        return HunyuanVideoTransformer3DModel(**transformer_arguments(shapes))


def load_transformer(
    path: Path | str, shapes: TransformerConfig | None = None, placement: Placement = WHOLE
) -> HunyuanVideoTransformer3DModel:
    """Load any checkpoint that `checkpoint_parts` reads, in float32, for image-to-video.

    A text-to-video checkpoint gets the channels of the image prior, with zero weights. A file has
    no configuration and needs `shapes`. Memory holds one whole parameter at a time, and what the
    placement keeps. Raises as `checkpoint_parts` and `fill` do.
    """
    path = Path(path)
    config, parts = checkpoint_config(path, shapes), checkpoint_parts(path)
    if config.get("image_condition_type") is None:
        num_extra = config["out_channels"] + 1
        parts = widened(parts, num_extra)
        in_channels = config["in_channels"] + num_extra
        config |= {"in_channels": in_channels, "image_condition_type": "latent_concat"}
    transformer = _empty(config, placement)
    fill(transformer, parts, placement)
    return transformer


def copy_transformer(
    transformer: HunyuanVideoTransformer3DModel, placement: Placement = WHOLE
) -> HunyuanVideoTransformer3DModel:
    """Return a trainable transformer with a copy of the weights."""
    copied = _empty(public(transformer.config), placement)
    copy_parameters(transformer, copied, placement)
    return copied


def _empty(config: dict[str, Any], placement: Placement) -> HunyuanVideoTransformer3DModel:
    with no_init_weights(), placement.building():
        return HunyuanVideoTransformer3DModel(**config)


def concat_image_prior(
    x_sigma: Float[Tensor, "b c f h w"], image_prior: Float[Tensor, "b c 1 h w"] | None
) -> Float[Tensor, "b d f h w"]:
    """Append the zero-padded first-frame latent and its mask (1 at latent frame 0). Known: 003."""
    prior = torch.zeros_like(x_sigma)
    mask = torch.zeros_like(x_sigma[:, :1])
    if image_prior is not None:
        prior[:, :, :1] = image_prior
        mask[:, :, :1] = 1
    return torch.cat([x_sigma, prior, mask], dim=1)


def network_inputs(
    transformer: HunyuanVideoTransformer3DModel,
    x_sigma: Float[Tensor, "b c f h w"],
    sigma: Float[Tensor, " b"],
    conditions: Conditions,
    guidance: Float[Tensor, " b"] | None = None,
) -> dict[str, Any]:
    """Return the arguments of diffusers' forward: the one place where conditions enter it.

    Image tokens stand before the text tokens. Known: 003 section 3. `guidance` is the Ho scale
    of a guidance-embedded network, which takes 1000 times it; None is scale 1, no guidance.
    """
    config, dtype = transformer.config, transformer.dtype
    if config["image_condition_type"] == "token_replace":
        hidden = torch.cat([_first_frame(conditions), x_sigma[:, :, 1:]], dim=2)
    else:
        hidden = concat_image_prior(x_sigma, conditions.image_prior)
    text, mask = conditions.text, conditions.text_mask
    if conditions.image_tokens is not None:
        text = torch.cat([conditions.image_tokens, text], dim=1)
        mask = torch.cat([mask.new_ones(conditions.image_tokens.shape[:2]), mask], dim=1)
    if config["guidance_embeds"] and guidance is None:
        guidance = torch.ones_like(sigma)
    if guidance is not None and not config["guidance_embeds"]:
        raise ValueError("this transformer has no guidance input (guidance_embeds is false)")
    return {
        "hidden_states": hidden.to(dtype),
        "timestep": NUM_TRAIN_TIMESTEPS * sigma,
        "encoder_hidden_states": text.to(dtype),
        "encoder_attention_mask": mask,
        "pooled_projections": conditions.pooled.to(dtype),
        "guidance": None if guidance is None else NUM_TRAIN_TIMESTEPS * guidance,
    }


class VelocityModel(nn.Module):
    """Wraps the transformer as a velocity field v(x_sigma, sigma, conditions)."""

    def __init__(self, transformer: HunyuanVideoTransformer3DModel) -> None:
        super().__init__()
        self.transformer = transformer

    @property
    def guidance_embeds(self) -> bool:
        """Whether the network takes the guidance scale as an input."""
        return self.transformer.config["guidance_embeds"]

    def forward(
        self,
        x_sigma: Float[Tensor, "b c f h w"],
        sigma: Float[Tensor, " b"],
        conditions: Conditions,
        guidance: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b c f h w"]:
        """Predict v in float32, whatever the dtype of the weights.

        A network that replaces the first frame by the image prior (HunyuanVideo-I2V) says nothing
        about it: there v leads straight to the prior.
        """
        inputs = network_inputs(self.transformer, x_sigma, sigma, conditions, guidance)
        v = predict(self.transformer, inputs).float()
        if self.transformer.config["image_condition_type"] != "token_replace":
            return v
        to_prior = x_sigma[:, :, :1] - _first_frame(conditions)
        return torch.cat([to_prior / per_sample(sigma, to_prior), v[:, :, 1:]], dim=2)


def _first_frame(conditions: Conditions) -> Tensor:
    if conditions.image_prior is None:
        raise ValueError("this network generates from a first frame: conditions.image_prior")
    return conditions.image_prior
