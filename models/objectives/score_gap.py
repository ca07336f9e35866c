"""Does weak-to-strong change the direction of distribution matching, or only its size?"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from magicdistill.models.diffusion.flow import add_noise, score_sigma
from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.objectives.config import ScoreSigmaConfig
from magicdistill.models.objectives.dmd import real_and_fake_x0


@torch.no_grad()
def weak_to_strong_gap(
    score: Callable[..., Tensor],
    module: nn.Module,
    x_hat: Float[Tensor, "b c f h w"],
    conditions: Conditions,
    rng: Rng,
    law: ScoreSigmaConfig,
    *,
    alpha_weak: float,
    alpha_strong: float,
) -> dict[str, Tensor]:
    """Compare the gap f - r of 002 Eq. 6 with plain distribution matching's f - base.

    `gap_ratio` is its mean size over that of the plain gap, `gap_cosine` their mean cosine. Where
    the LoRA acts linearly they are 1 - alpha_weak / alpha_strong and 1: weak-to-strong is then a
    mere rescaling, which Adam undoes. Our own measure.
    """
    sigma = score_sigma(rng.uniform("gap-sigma"), law.shift, law.min, law.max)
    x_sigma = add_noise(x_hat, rng.normal("gap-eps", x_hat.shape[1:]), sigma)

    def gap(alpha: float) -> Float[Tensor, "b n"]:
        real, fake = real_and_fake_x0(
            score,
            module,
            x_sigma,
            sigma,
            conditions,
            alpha_weak=alpha,
            alpha_strong=alpha_strong,
        )
        return (fake - real).flatten(1)

    weak, plain = gap(alpha_weak), gap(0.0)
    return {
        "gap_ratio": weak.abs().mean() / plain.abs().mean(),
        "gap_cosine": cosine_similarity(weak, plain).mean(),
    }
