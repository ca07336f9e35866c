"""How close pixels come to those that they were made of."""

import torch
from jaxtyping import Float
from torch import Tensor


def psnr_db(found: Float[Tensor, "*shape"], wanted: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Return the peak signal-to-noise ratio of pixels in [-1, 1], -10 log10(MSE / 4), in dB."""
    return -10 * torch.log10((found - wanted).square().mean() / 4)
