"""The VAE of Wan: what its family answers about diffusers' network."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from jaxtyping import Float
from torch import Tensor

from magicdistill.models.networks.autoencoder.family import VaeFamily


class WanVae(VaeFamily):
    """diffusers' AutoencoderKLWan, whose configuration has the statistics of each channel."""

    network = AutoencoderKLWan

    @classmethod
    def compression(cls, config: Mapping[str, Any]) -> tuple[int, int]:
        """Return the factors under the names that they have here."""
        return config["scale_factor_temporal"], config["scale_factor_spatial"]

    @classmethod
    def statistics(
        cls, config: Mapping[str, Any], channels: int
    ) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        """Return `latents_mean` and `latents_std`."""
        return torch.tensor(config["latents_mean"]), torch.tensor(config["latents_std"])

    @classmethod
    def with_statistics(
        cls, autoencoder: Any, mean: Float[Tensor, " c"], std: Float[Tensor, " c"]
    ) -> None:
        """Write the statistics into the configuration."""
        autoencoder.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())

    @classmethod
    def run_encoder(cls, autoencoder: Any, pixels: Float[Tensor, "b 3 t y x"]) -> Any:
        """Encode a clip; without what is kept between its groups of four frames, the encoder would
        leave the compression in time out."""
        return autoencoder.encode(pixels)
