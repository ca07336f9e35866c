"""What a family of video VAEs answers about a network: all that other code asks of it."""

from abc import ABC
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn


class VaeFamily(ABC):
    """The answers of a family; those here are of one with a scaling factor and diffusers' names."""

    network: ClassVar[type[ModelMixin]]
    """The network's class: it encodes to a posterior and decodes, as diffusers' autoencoders do."""

    @classmethod
    def compression(cls, config: Mapping[str, Any]) -> tuple[int, int]:
        """Return the frames and the pixels of a side that become one latent."""
        return config["temporal_compression_ratio"], config["spatial_compression_ratio"]

    @classmethod
    def statistics(
        cls, config: Mapping[str, Any], channels: int
    ) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        """Return mean and standard deviation of each latent channel, by diffusers' configuration.

        Latents times the scaling factor have about unit variance.
        """
        return torch.zeros(channels), torch.full((channels,), 1 / config["scaling_factor"])

    @classmethod
    def with_statistics(
        cls, autoencoder: Any, mean: Float[Tensor, " c"], std: Float[Tensor, " c"]
    ) -> None:
        """Change a network so that its own configuration normalises latents of such statistics.

        Raises:
            ValueError: the family's configuration and weights cannot carry them.
        """
        _, own = cls.statistics(autoencoder.config, len(std))
        if mean.any() or not torch.allclose(own, std.cpu()):
            raise ValueError(
                f"{cls.network.__name__} normalises by its scaling factor alone, and the latents "
                "have statistics of their own"
            )

    @classmethod
    def tiling(cls, tile_px: int, stride_px: int, compression_px: int) -> dict[str, Any]:
        """Return the arguments of the network's `enable_tiling` for square tiles."""
        return {
            "tile_sample_min_height": tile_px,
            "tile_sample_min_width": tile_px,
            "tile_sample_stride_height": stride_px,
            "tile_sample_stride_width": stride_px,
        }

    @classmethod
    def run_encoder(cls, autoencoder: Any, pixels: Float[Tensor, "b 3 t y x"]) -> Any:
        """Encode frames in one run, as a plan counts it."""
        return autoencoder.encoder(pixels)

    @classmethod
    def decoder(cls, autoencoder: Any) -> nn.Module:
        """Return the module that decodes latents to unclamped pixels, for training.

        Raises:
            ValueError: the family has no such module.
        """
        raise ValueError(f"{cls.network.__name__}: its decoder is not trained here")
