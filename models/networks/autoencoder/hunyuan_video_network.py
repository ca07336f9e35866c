"""The VAE of HunyuanVideo: what its family answers about diffusers' network."""

from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo
from jaxtyping import Float
from torch import Tensor, nn

from magicdistill.models.networks.autoencoder.family import VaeFamily


class HunyuanVideoVae(VaeFamily):
    """diffusers' AutoencoderKLHunyuanVideo; its latents times 0.476986 have about unit variance."""

    network = AutoencoderKLHunyuanVideo

    @classmethod
    @torch.no_grad()
    def with_statistics(
        cls, autoencoder: Any, mean: Float[Tensor, " c"], std: Float[Tensor, " c"]
    ) -> None:
        """Fold the statistics of the latents into the weights, so that the factor s normalises.

        With k = s * std the encoder gives (z - mean) / k, and the decoder takes it.
        """
        encode, decode = autoencoder.quant_conv, autoencoder.post_quant_conv
        k = std * autoencoder.config["scaling_factor"]
        num = len(k)
        encode.bias[:num].sub_(mean).div_(k)
        encode.weight[:num].div_(k.view(-1, 1, 1, 1, 1))
        encode.bias[num:].sub_(2 * k.log())
        decode.bias.add_(decode.weight.flatten(1) @ mean)
        decode.weight.mul_(k.view(1, -1, 1, 1, 1))

    @classmethod
    def decoder(cls, autoencoder: Any) -> nn.Module:
        """Return the decoder behind its first convolution."""
        return nn.Sequential(autoencoder.post_quant_conv, autoencoder.decoder)
