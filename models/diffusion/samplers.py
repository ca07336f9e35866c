"""Samplers: `(velocity, noise, sigmas, conditions) -> latents`.

Training rollouts, noise-data pairs, validation and inference call these same functions:
a student trained under one sampler is bad under the other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from magicdistill.models.diffusion.flow import add_noise, x0_from_velocity
from magicdistill.models.diffusion.noise_levels import reaches
from magicdistill.models.networks.conditioning.conditions import Conditions

SamplerName = Literal["euler", "consistency"]
FreshNoise = Callable[[int], Tensor]
"""Returns the noise (b c f h w) that the consistency sampler adds after a step, by its number."""
Velocity = Callable[[Tensor, Tensor, Conditions], Tensor]
"""A network as samplers and objectives see it: (x_sigma, one sigma per sample, conditions) -> v."""


@dataclass(frozen=True)
class Experts:
    """Two experts of which one predicts: `high` from the noise level `boundary` on, `low` below it.

    All samples of a call have one noise level. Known: diffusers' pipelines of Wan 2.2.
    """

    high: Callable[..., Tensor]
    low: Callable[..., Tensor]
    boundary: float

    @classmethod
    def of(
        cls, own: Callable[..., Tensor], other: Callable[..., Tensor], levels: tuple[float, float]
    ) -> "Experts":
        """Let `own` predict from the smallest to the largest of its noise levels, one of which is 0
        or 1, and `other` elsewhere."""
        start, end = levels
        return cls(own, other, start) if end == 1 else cls(other, own, end)

    @property
    def guidance_embeds(self) -> bool:
        """Whether they take the guidance scale as an input."""
        return getattr(self.high, "guidance_embeds", False)

    def __call__(
        self, x: Tensor, sigma: Tensor, conditions: Conditions, **guidance: Tensor
    ) -> Tensor:
        expert = self.high if reaches(sigma[0], self.boundary) else self.low
        return expert(x, sigma, conditions, **guidance)


def euler_step(x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Follow the velocity from sigma to sigma_next. Known: Magic141's public sampler."""
    return x + (sigma_next - sigma) * v


def consistency_step(x0: Tensor, eps: Tensor, sigma_next: Tensor) -> Tensor:
    """Noise a clean prediction freshly to sigma_next. Standard: DMD2's own sampler."""
    return add_noise(x0, eps, sigma_next.expand(len(x0)))


def rollout(
    velocity: Velocity,
    noise: Float[Tensor, "b c f h w"],
    sigmas: Float[Tensor, " steps"],
    conditions: Conditions,
    *,
    sampler: SamplerName,
    fresh_noise: FreshNoise | None = None,
    num_steps: int | None = None,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Run the first `num_steps` sampler steps from pure noise.

    `sigmas` decrease and end at 0, as those of `sigma_grid`; a step of training does not read
    them, which would wait for the GPU. Returns one (x, sigma, x0) per network call: its input,
    its sigma (b,) and its clean prediction. `fresh_noise(i)` gives the consistency sampler's noise
    after step i; the Euler sampler never asks. Raises ValueError for a consistency sampler without
    noise.
    """
    num_steps = len(sigmas) - 1 if num_steps is None else num_steps
    visited, _ = run_steps(velocity, noise, sigmas, conditions, sampler, fresh_noise, num_steps)
    return visited


def run_steps(
    velocity: Velocity,
    noise: Tensor,
    sigmas: Tensor,
    conditions: Conditions,
    sampler: SamplerName,
    fresh_noise: FreshNoise | None,
    num_steps: int,
) -> tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor]:
    """Return what `rollout` does, and the input of the network call after the last one."""
    if sampler == "consistency" and fresh_noise is None:
        raise ValueError("the consistency sampler needs fresh_noise")
    x, visited = noise, []
    for step in range(num_steps):
        sigma = sigmas[step].expand(len(x))
        v = velocity(x, sigma, conditions)
        x0 = x0_from_velocity(x, v, sigma)
        visited.append((x, sigma, x0))
        x = advance(x, v, x0, sigmas, step, fresh_noise if sampler == "consistency" else None)
    return visited, x


def advance(
    x: Tensor, v: Tensor, x0: Tensor, sigmas: Tensor, step: int, fresh_noise: FreshNoise | None
) -> Tensor:
    """Return the input of the network call after `step`; without `fresh_noise` by Euler's step."""
    if fresh_noise is None:
        return euler_step(x, v, sigmas[step], sigmas[step + 1])
    if step + 2 == len(sigmas):
        return x0
    return consistency_step(x0, fresh_noise(step), sigmas[step + 1])


@torch.no_grad()
def sample(
    velocity: Velocity,
    noise: Float[Tensor, "b c f h w"],
    sigmas: Float[Tensor, " steps"],
    conditions: Conditions,
    *,
    sampler: SamplerName = "euler",
    fresh_noise: FreshNoise | None = None,
) -> Float[Tensor, "b c f h w"]:
    """Generate latents; the grid ends at sigma 0, so the last clean prediction is the sample.

    Raises ValueError for another grid, and as `rollout` does.
    """
    if sigmas[-1] != 0 or not (sigmas.diff() < 0).all():
        raise ValueError(f"a sampler's grid decreases and ends at 0, got {sigmas.tolist()}")
    visited = rollout(velocity, noise, sigmas, conditions, sampler=sampler, fresh_noise=fresh_noise)
    return visited[-1][2]
