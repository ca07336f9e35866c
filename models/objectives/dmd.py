"""Distribution matching, weak to strong."""

from collections.abc import Callable

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
    guidance: tuple[Scale, Conditions] | None = None,
) -> tuple[Latents, Latents]:
    """Predict x0 with the real and the fake score in one forward over a doubled batch.

    real = base + alpha_weak * LoRA, fake = base + alpha_strong * LoRA (002 Eq. 6, known in words);
    `module` holds the LoRA layers behind `score`. `guidance` guides the real score with a scale
    against the null prompt's conditions: the batch is then tripled. Guidance: not in the paper.
    """
    strengths, parts = [alpha_weak, alpha_strong], [conditions, conditions]
    if guidance is not None:
        strengths, parts = [*strengths, alpha_weak], [*parts, guidance[1]]
    strength = torch.tensor(strengths).to(x_sigma, non_blocking=True)
    x, s = torch.cat([x_sigma] * len(parts)), torch.cat([sigma] * len(parts))
    with lora_strength(module, strength.repeat_interleave(len(x_sigma))):
        v = score(x, s, Conditions.cat(parts))
    v_real, v_fake, *v_null = v.chunk(len(parts))
    if guidance is not None:
        v_real = guide(v_real, v_null[0], guidance[0])
    return x0_from_velocity(x_sigma, v_real, sigma), x0_from_velocity(x_sigma, v_fake, sigma)


def dmd_gradient(x_hat: Latents, target_x0: Latents, fake_x0: Latents) -> Latents:
    """Return g = (f - r) / max(mean|x_hat - r|, 1e-5), the mean per sample (003 Eq. 4). Known."""
    scale = (x_hat - target_x0).abs().flatten(1).mean(1).clamp_min(SMALLEST_SCALE)
    return (fake_x0 - target_x0) / scale.view(-1, 1, 1, 1, 1)


def descend(x_hat: Latents, gradient: Latents) -> Float[Tensor, ""]:
    """Return 0.5 MSE(x_hat, stopgrad(x_hat - g)), whose gradient by x_hat is g over its size."""
    return 0.5 * functional.mse_loss(x_hat, (x_hat - gradient).detach())


def fake_score_loss(v_fake: Latents, x_hat: Latents, eps: Latents) -> Float[Tensor, ""]:
    """Return MSE(v_fake(x_sigma), eps - x_hat), the only loss of the LoRA (003 Eq. 5). Known."""
    return functional.mse_loss(v_fake, velocity(x_hat.detach(), eps))
