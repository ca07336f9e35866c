"""Distribution matching, weak to strong."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from magicdistill.models.diffusion.flow import velocity, x0_from_velocity
from magicdistill.models.diffusion.guidance import Scale, guide
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.lora import lora_strength

Latents = Float[Tensor, "b c f h w"]
SMALLEST_SCALE = 1e-5


@torch.no_grad()
def real_and_fake_x0(
    score: Callable[..., Tensor],
    module: nn.Module,
    x_sigma: Latents,
    sigma: Float[Tensor, " b"],
    conditions: Conditions,
    *,
    alpha_weak: float,
    alpha_strong: float,
) -> tuple[Latents, Latents]:
    """Predict x0 with the real and the fake score, without guidance; see `BothScores`.

    `module` holds the LoRA layers behind `score`.
    """
    both = BothScores(x_sigma, sigma, conditions)
    with both.strengths(module, alpha_weak, alpha_strong):
        return both.x0(score(*both.inputs()))


@dataclass(frozen=True)
class BothScores:
    """The real and the fake score of the same samples in one forward over a doubled batch.

    real = base + alpha_weak * LoRA, fake = base + alpha_strong * LoRA (002 Eq. 6, known in words).
    `guidance` guides the real score with a scale against the null prompt's conditions: the batch is
    then tripled. Guidance: not in the paper.
    """

    x_sigma: Latents
    sigma: Float[Tensor, " b"]
    conditions: Conditions
    guidance: tuple[Scale, Conditions] | None = None

    def inputs(self) -> tuple[Latents, Float[Tensor, " n"], Conditions]:
        """Return the arguments of the forward."""
        parts = [self.conditions, self.conditions]
        if self.guidance is not None:
            parts.append(self.guidance[1])
        x, sigma = ([given] * len(parts) for given in (self.x_sigma, self.sigma))
        return torch.cat(x), torch.cat(sigma), Conditions.cat(parts)

    def strengths(
        self, module: nn.Module, alpha_weak: float, alpha_strong: float
    ) -> AbstractContextManager[None]:
        """Set the LoRA's strength of each sample in the forward."""
        strengths = [alpha_weak, alpha_strong] + [alpha_weak] * (self.guidance is not None)
        strength = torch.tensor(strengths).to(self.x_sigma, non_blocking=True)
        return lora_strength(module, strength.repeat_interleave(len(self.x_sigma)))

    def x0(self, v: Float[Tensor, "n c f h w"]) -> tuple[Latents, Latents]:
        """Return both predictions of x0 from the velocity of the whole batch."""
        v_real, v_fake, *v_null = v.chunk(2 + (self.guidance is not None))
        if self.guidance is not None:
            v_real = guide(v_real, v_null[0], self.guidance[0])
        real, fake = (x0_from_velocity(self.x_sigma, v, self.sigma) for v in (v_real, v_fake))
        return real, fake


def dmd_gradient(x_hat: Latents, target_x0: Latents, fake_x0: Latents) -> Latents:
    """Return g = (f - r) / max(mean|x_hat - r|, 1e-5), the mean per sample (003 Eq. 4). Known."""
    scale = (x_hat - target_x0).abs().flatten(1).mean(1).clamp_min(SMALLEST_SCALE)
    return (fake_x0 - target_x0) / scale.view(-1, 1, 1, 1, 1)


def descend(x_hat: Latents, gradient: Latents) -> Float[Tensor, ""]:
    """Return 0.5 MSE(x_hat, stopgrad(x_hat - g)), whose gradient by x_hat is g over its size."""
    return 0.5 * functional.mse_loss(x_hat, (x_hat - gradient).detach())


def fake_score_loss(
    v_fake: Latents, x_hat: Latents, eps: Latents, weight: Float[Tensor, " b"] | None = None
) -> Float[Tensor, ""]:
    """Return MSE(v_fake(x_sigma), eps - x_hat), the only loss of the LoRA (003 Eq. 5). Known.

    `weight` weighs samples. With sigma^2 it is MSE(x0_fake, x_hat), as x0 = x_sigma - sigma v.
    """
    target = velocity(x_hat.detach(), eps)
    if weight is None:
        return functional.mse_loss(v_fake, target)
    return (weight * (v_fake - target).square().flatten(1).mean(1)).mean()
