"""The VAE of a pipeline of diffusers whose decoder diffusers lacks.

`model_index.json` names this module: diffusers imports it where MagicDistill is installed, and
elsewhere says that it cannot, instead of decoding with another decoder.
"""

from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from jaxtyping import Float
from torch import Tensor

from magicdistill.models.networks.autoencoder.patch_decoder import PatchDecoder
from magicdistill.models.networks.autoencoder.vae import VideoVae
from magicdistill.models.networks.config import PatchDecoderConfig
from magicdistill.models.networks.state_dicts import public


class PatchDecodedAutoencoder(ModelMixin, ConfigMixin):
    """An encoder of diffusers and a patch decoder; latents times a factor are normalised."""

    mean: Tensor
    std: Tensor

    @register_to_config
    def __init__(
        self,
        autoencoder_config: dict[str, Any],
        patch_decoder_config: dict[str, Any],
        scaling_factor: float,
    ) -> None:
        super().__init__()
        self.autoencoder = AutoencoderKLHunyuanVideo(**autoencoder_config)
        self.patch_decoder = PatchDecoder(PatchDecoderConfig(**patch_decoder_config))
        self.temporal_compression_ratio = self.autoencoder.temporal_compression_ratio
        self.spatial_compression_ratio = self.autoencoder.spatial_compression_ratio
        channels = autoencoder_config["latent_channels"]
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    @classmethod
    def of(cls, vae: VideoVae, autoencoder: AutoencoderKLHunyuanVideo) -> "PatchDecodedAutoencoder":
        """Join a VAE's patch decoder with its autoencoder, whose latents a factor normalises."""
        assert vae.patch_decoder is not None
        factor = autoencoder.config["scaling_factor"]
        config = public(autoencoder.config)
        made = cls(config, vae.patch_decoder.config.model_dump(), factor)
        made.autoencoder.load_state_dict(autoencoder.state_dict())
        made.patch_decoder.load_state_dict(vae.patch_decoder.state_dict())
        made.mean.copy_(vae.mean)
        made.std.copy_(vae.std * factor)
        return made.eval()

    def encode(self, pixels: Float[Tensor, "b 3 t y x"], return_dict: bool = True) -> Any:
        """Return the posterior, as diffusers' autoencoder does."""
        return self.autoencoder.encode(pixels, return_dict=return_dict)

    def decode(self, latents: Float[Tensor, "b c f h w"], return_dict: bool = True) -> Any:
        """Return pixels in [-1, 1], as diffusers' autoencoder does."""
        mean, std = (values.view(1, -1, 1, 1, 1) for values in (self.mean, self.std))
        pixels = self.patch_decoder(latents * std + mean).clamp(-1, 1)
        return DecoderOutput(sample=pixels) if return_dict else (pixels,)
