"""A fast patch decoder for the tiny VAE's linear latents.

Latents of `patch_code` hold details that diffusers' decoder (nearest-neighbour upsampling and
convolutions, blind to a pixel's place within its patch) learns only slowly: 20.9 dB after 24
minutes on one core. This decoder starts at the linear inverse of the code. It has the interface
of the autoencoder's own decoder.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from magicdistill.models.networks.config import PatchDecoderConfig

FIRST, REST = 3 * 8 * 8, 3 * 4 * 8 * 8
"""Values of pixels under one latent: one frame under the first latent frame, four under others."""


class ResidualBlock(nn.Module):
    """Two 3 x 3 x 3 convolutions over latents; starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.conv1 = nn.Conv3d(width, width, 3, padding=1)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the input plus the output of the convolutions, (b d f h w)."""
        return hidden + self.conv2(functional.silu(self.conv1(functional.silu(self.norm(hidden)))))


class PatchDecoder(nn.Module):
    """Predicts the pixels of each causal 4 x 8 x 8 patch from its neighbourhood of latents."""

    def __init__(self, config: PatchDecoderConfig) -> None:
        super().__init__()
        self.config = config
        channels, width = config.latent_channels, config.width
        self.conv_in = nn.Conv3d(channels, width, 3, padding=1)
        self.blocks = nn.Sequential(*[ResidualBlock(width) for _ in range(config.num_blocks)])
        self.first = nn.Linear(width + channels, FIRST)
        self.rest = nn.Linear(width + channels, REST)

    def forward(self, latents: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b 3 t y x"]:
        """Return pixels, unclamped."""
        hidden = torch.cat([self.blocks(self.conv_in(latents)), latents], dim=1)
        hidden = rearrange(hidden, "b c f h w -> b f h w c")
        first = rearrange(
            self.first(hidden[:, :1]), "b f h w (c p q) -> b c f (h p) (w q)", p=8, q=8
        )
        rest = rearrange(
            self.rest(hidden[:, 1:]),
            "b f h w (c k p q) -> b c (f k) (h p) (w q)",
            k=4, p=8, q=8,
        )  # fmt: skip
        return torch.cat([first, rest], dim=2)

    @torch.no_grad()
    def set_linear_inverse(
        self, latents: Float[Tensor, "n c f h w"], pixels: Float[Tensor, "n 3 t y x"]
    ) -> None:
        """Set the last layers to the least-squares linear map from each latent to its patch."""
        codes = rearrange(latents, "n c f h w -> n f h w c")
        first = rearrange(pixels[:, :, 0], "n c (h p) (w q) -> (n h w) (c p q)", p=8, q=8)
        rest = rearrange(
            pixels[:, :, 1:],
            "n c (f k) (h p) (w q) -> (n f h w) (c k p q)",
            k=4, p=8, q=8,
        )  # fmt: skip
        for layer, inputs, targets in (
            (self.first, codes[:, 0], first),
            (self.rest, codes[:, 1:], rest),
        ):
            inputs = inputs.reshape(-1, latents.shape[1])
            inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)
            solution = torch.linalg.lstsq(inputs, targets).solution
            layer.weight.zero_()
            layer.weight[:, -latents.shape[1] :] = solution[:-1].T
            layer.bias.copy_(solution[-1])
