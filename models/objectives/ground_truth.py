"""Supervision of generated latents by real ones (002 Eq. 7)."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from magicdistill.models.objectives.dmd import Latents, descend, dmd_gradient
from magicdistill.models.objectives.huber import pseudo_huber


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
