"""Supervision of generated latents: by real ones (002 Eq. 7), and by pairs of noise and video."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from magicdistill.models.objectives.dmd import Latents, descend, dmd_gradient
from magicdistill.models.objectives.huber import pseudo_huber
from magicdistill.models.objectives.types import Batch, Loss


def ground_truth_loss(
    reading: Literal["mse", "huber", "dmd"], x_hat: Latents, x_gt: Latents, fake_x0: Latents
) -> Float[Tensor, ""]:
    """Pull x_hat to the clip that its first frame and text are from. Reconstructed: 002 Eq. 7.

    `mse` and `huber` are distances to the clip. `dmd` is distribution matching with the clip as
    a point in the real score's place: g = (f - x_gt) / max(mean|x_hat - x_gt|, 1e-5).
    """
    match reading:
        case "mse":
            return functional.mse_loss(x_hat, x_gt)
        case "huber":
            return pseudo_huber(x_hat, x_gt)
        case "dmd":
            return descend(x_hat, dmd_gradient(x_hat, x_gt, fake_x0))


def pair_loss(x_hat: Tensor, batch: Batch, weight: float, huber_c: float) -> Loss:
    """Return weight * Huber(G(noise), video) of a batch's pairs. Known in words: 002 section 4.

    Raises:
        ValueError: if the batch has no pairs.
    """
    if batch.pair is None:
        raise ValueError("method.pairs is set, and nothing makes pairs: give the recipe `pairs`")
    distance = pseudo_huber(x_hat, batch.pair.video, huber_c)
    terms = {"pairs": distance.detach(), "pair_weight": torch.tensor(weight)}
    return Loss(weight * distance, terms)
