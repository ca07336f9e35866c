"""The one home of the flow-matching conventions (rectified flow, noise at sigma = 1).

    x_sigma = (1 - sigma) * x0 + sigma * eps        v = eps - x0
    x0 = x_sigma - sigma * v                        timestep = 1000 * sigma

Known forms: MagicDistillation (002) Eq. 1 and Magic141 (003) section 3.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

NUM_TRAIN_TIMESTEPS = 1000.0
"""The network's embedding takes timesteps from 0 to this, which is sigma 1."""


def per_sample(sigma: Float[Tensor, " b"], like: Tensor) -> Tensor:
    """Reshape one value per sample to broadcast against `like` (b, ...)."""
    return sigma.view(-1, *[1] * (like.ndim - 1))


def add_noise(x0: Tensor, eps: Tensor, sigma: Float[Tensor, " b"]) -> Tensor:
    """Return x_sigma on the straight path from data (sigma 0) to noise (sigma 1)."""
    weight = per_sample(sigma, x0)
    return (1 - weight) * x0 + weight * eps


class Noised(NamedTuple):
    """Clean latents carried to a noise level: what a network sees, where, and the noise in it."""

    x_sigma: Float[Tensor, "b c f h w"]
    sigma: Float[Tensor, " b"]
    eps: Float[Tensor, "b c f h w"]


def noised(x0: Tensor, eps: Tensor, sigma: Float[Tensor, " b"]) -> Noised:
    """Carry x0 (b, ...) to sigma; return the result with sigma and the noise."""
    return Noised(add_noise(x0, eps, sigma), sigma, eps)


def velocity(x0: Tensor, eps: Tensor) -> Tensor:
    """Return the path's velocity, the regression target of every flow-matching loss."""
    return eps - x0


def x0_from_velocity(x_sigma: Tensor, v: Tensor, sigma: Float[Tensor, " b"]) -> Tensor:
    """Return the clean latents that a velocity at sigma points to."""
    return x_sigma - per_sample(sigma, x_sigma) * v


def shift_sigma(u: Tensor, shift: float) -> Tensor:
    """Move uniform times towards noise: sigma = s u / (1 + (s - 1) u). Known."""
    return shift * u / (1 + (shift - 1) * u)


def sigma_grid(num_steps: int, shift: float, device: torch.device | str = "cpu") -> Tensor:
    """Return the sampler's num_steps + 1 sigmas, from 1 down to 0.

    With 4 steps and shift 5 the timesteps are [1000, 937.5, 833.3, 625] and the grid ends at 0.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    return shift_sigma(torch.linspace(1, 0, num_steps + 1, device=device), shift)


def score_sigma(u: Float[Tensor, " b"], shift: float, low: float, high: float) -> Tensor:
    """Map uniform draws to the sigmas at which scores are compared: shift, then clamp. Standard."""
    return shift_sigma(u, shift).clamp(low, high)


def logit_normal_sigma(normal: Float[Tensor, " b"], shift: float) -> Tensor:
    """Map normal draws to the logit-normal sigma law of flow-matching training. Known."""
    return shift_sigma(torch.sigmoid(normal), shift)
