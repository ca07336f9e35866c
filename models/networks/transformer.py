"""The video transformer as a velocity field."""

from pathlib import Path

import torch
from diffusers import HunyuanVideoTransformer3DModel
from jaxtyping import Float
from torch import Tensor, nn

from magicdistill.models.diffusion.flow import NUM_TRAIN_TIMESTEPS
from magicdistill.models.networks.conditions import Conditions
from magicdistill.models.networks.config import TransformerConfig


def build_transformer(config: TransformerConfig) -> HunyuanVideoTransformer3DModel:
    """Build the network with random weights; its input is [noisy C | image prior C | mask 1]."""
    channels = config.latent_channels
    return HunyuanVideoTransformer3DModel(
        in_channels=2 * channels + 1,
        out_channels=channels,
        image_condition_type="latent_concat",
        **config.model_dump(exclude={"latent_channels", "num_text_tokens"}),
    )


def load_transformer(directory: Path | str) -> HunyuanVideoTransformer3DModel:
    """Load a diffusers folder in float32."""
    return HunyuanVideoTransformer3DModel.from_pretrained(directory, torch_dtype=torch.float32)


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


class VelocityModel(nn.Module):
    """Wraps the transformer; nothing else knows how conditions enter it."""

    def __init__(self, transformer: HunyuanVideoTransformer3DModel) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self,
        x_sigma: Float[Tensor, "b c f h w"],
        sigma: Float[Tensor, " b"],
        conditions: Conditions,
        guidance: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b c f h w"]:
        """Predict v in float32, whatever the dtype of the weights.

        `guidance` is the Ho scale of a guidance-embedded network, which takes 1000 times it.
        """
        dtype = self.transformer.dtype
        v = self.transformer(
            hidden_states=concat_image_prior(x_sigma, conditions.image_prior).to(dtype),
            timestep=NUM_TRAIN_TIMESTEPS * sigma,
            encoder_hidden_states=conditions.text.to(dtype),
            encoder_attention_mask=conditions.text_mask,
            pooled_projections=conditions.pooled.to(dtype),
            guidance=None if guidance is None else NUM_TRAIN_TIMESTEPS * guidance,
            return_dict=False,
        )[0]
        return v.float()
