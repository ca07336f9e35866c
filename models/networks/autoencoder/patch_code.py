"""A closed-form encoder for the tiny VAE: the principal components of causal pixel patches.

The network's residual branches start at zero, so that what remains of diffusers' encoder is a
chain of strided convolutions. Each is set to the principal components of the 1 x 2 x 2 or
2 x 2 x 2 blocks below it, which makes the whole chain a linear code of causal 4 x 8 x 8 patches
with unit variance. Our own recipe for small machines; the papers start from a trained VAE.
"""

from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

Block = Any
"""A part of the autoencoder; its attributes have no static types."""
REFERENCE = 20.0
"""Magnitude of the constants that fix the scale of the last norm: large beside codes of about 1."""
LOG_VARIANCE = -6.0
"""Log variance of the posterior, which this encoder does not predict."""


@torch.no_grad()
def set_patch_code(
    autoencoder: AutoencoderKLHunyuanVideo, pixels: Float[Tensor, "n 3 t y x"]
) -> None:
    """Make the encoder compute the leading components of `pixels` (in [-1, 1], 4k+1 frames)."""
    encoder: Block = autoencoder.encoder
    _silence_residuals(encoder)
    _set_identity(encoder.conv_in)
    features = pixels
    for block in list(encoder.down_blocks)[:-1]:
        shortcut = block.resnets[0].conv_shortcut
        if shortcut is not None:
            _set_identity(shortcut)
        features = _set_components(block.downsamplers[0].conv.conv, features)
    scale = features.flatten(2).std(dim=(0, 2))
    _set_output(autoencoder, scale)


def _silence_residuals(half: Block) -> None:
    for module in half.modules():
        if hasattr(module, "conv2"):
            _zero(module.conv2)
    for attention in half.mid_block.attentions:
        _zero(attention.to_out[0])


def _zero(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.zero_()


def _set_identity(convolution: Block) -> None:
    """Make a convolution copy its input channels to its first output channels."""
    convolution = getattr(convolution, "conv", convolution)
    _zero(convolution)
    size = convolution.kernel_size[1]
    for channel in range(min(convolution.in_channels, convolution.out_channels)):
        convolution.weight[channel, channel, -1, size // 2, size // 2] = 1


def _set_components(convolution: Block, features: Tensor) -> Tensor:
    """Set a causal stride-2 convolution to block components and return its output.

    With replicated causal padding, output t > 0 covers inputs 2t - 1 and 2t, and output 0 sees
    frame 0 repeated; kernel taps 1 and 2 of each strided axis are the block.
    """
    stride_t = convolution.stride[0]
    if stride_t == 2:
        features = torch.cat([features[:, :, :1], features], dim=2)
    blocks = rearrange(
        features,
        "n c (f k) (h p) (w q) -> (n f h w) (c k p q)",
        k=stride_t, p=2, q=2,
    )  # fmt: skip
    mean = blocks.mean(0)
    num = min(convolution.out_channels, blocks.shape[1])
    _, axes = torch.linalg.eigh(torch.cov(blocks.T))
    basis = axes.flip(1)[:, :num].T
    _zero(convolution)
    taps = slice(3 - stride_t, 3)
    channels = features.shape[1]
    convolution.weight[:num, :channels, taps, 1:, 1:] = rearrange(
        basis, "o (c k p q) -> o c k p q", c=channels, k=stride_t, p=2, q=2
    )
    convolution.bias[:num] = -basis @ mean
    return rearrange(
        (blocks - mean) @ basis.T,
        "(n f h w) o -> n o f h w",
        n=len(features),
        f=features.shape[2] // stride_t,
        h=features.shape[3] // 2,
    )


def _set_output(autoencoder: AutoencoderKLHunyuanVideo, scale: Float[Tensor, " d"]) -> None:
    """Carry each code y as the pair (y, -y) through the last norm and SiLU, exactly.

    silu(y) - silu(-y) = y, and constants of +-REFERENCE in each group keep the norm's scale
    from depending on the clip.
    """
    encoder: Block = autoencoder.encoder
    num = autoencoder.config["latent_channels"]
    shortcut = encoder.down_blocks[-1].resnets[0].conv_shortcut.conv
    norm, out = encoder.conv_norm_out, encoder.conv_out.conv
    groups = norm.num_groups
    width, codes = norm.num_channels // groups, -(-num // groups)
    if width < 2 * codes + 2:
        raise ValueError(f"{norm.num_channels} channels cannot carry {num} codes and references")
    last: Block = autoencoder.quant_conv
    for module in (shortcut, out, last):
        _zero(module)
    for code in range(num):
        first = (code % groups) * width + 2 * (code // groups)
        for channel, sign in ((first, 1.0), (first + 1, -1.0)):
            shortcut.weight[channel, code] = sign / scale[code]
            out.weight[code, channel, -1, 1, 1] = sign
    out.bias[num:] = LOG_VARIANCE
    for group in range(groups):
        references = range(group * width + 2 * codes, (group + 1) * width)
        for index, channel in enumerate(references):
            shortcut.bias[channel] = REFERENCE if index % 2 else -REFERENCE
    norm.weight.fill_(REFERENCE * ((width - 2 * codes) / width) ** 0.5)
    norm.bias.zero_()
    for channel in range(2 * num):
        last.weight[channel, channel] = 1
