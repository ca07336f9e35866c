"""The one home of classifier-free guidance, in the Ho form: v = u + w (c - u).

c is the network's velocity with the prompt, u without, w the scale; w = 1 is no guidance.
Magic141's (1 + w) c - w u (003 Eq. 7) is this form at scale 1 + w; recipes that use it are
converted where they are read (`objectives.config.GuidanceRange`).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from magicdistill.models.diffusion.flow import per_sample
from magicdistill.models.diffusion.samplers import Velocity
from magicdistill.models.networks.conditioning.conditions import Conditions

Scale = float | Float[Tensor, " b"]
"""One Ho scale for all samples, or one each."""


def is_unguided(scale: Scale) -> bool:
    """Tell whether a scale is the fixed 1, for which the prompt's velocity is the answer."""
    return not isinstance(scale, Tensor) and scale == 1


def forwards_per_step(scale: Scale, *, embeds: bool) -> int:
    """Return how many network evaluations of a sample a guided sampler step takes."""
    return 1 if embeds or is_unguided(scale) else 2


def demand_null(null: Conditions | None) -> Conditions:
    """Return the null prompt's conditions; raise ValueError where the batch has none."""
    if null is None:
        raise ValueError("guidance compares with the null prompt: give the batch its `null`")
    return null


def guide(conditional: Tensor, unconditional: Tensor, scale: Scale) -> Tensor:
    """Return u + w (c - u), shape (b ...). Standard."""
    weight = per_sample(scale, conditional) if isinstance(scale, Tensor) else scale
    return unconditional + weight * (conditional - unconditional)


def scales(scale: Scale, like: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Return one scale for each of the b entries of `like`; k given scales repeat b / k times."""
    if not isinstance(scale, Tensor):
        return torch.full_like(like, scale)
    values = scale.to(like).reshape(-1)
    return values.repeat(len(like) // len(values))


def embedded(network: Callable[..., Tensor], scale: Scale, *, embeds: bool) -> Velocity:
    """Bind the scale to a network that takes it as an input; return any other network unchanged."""
    if not embeds:
        return network
    return lambda x, sigma, conditions: network(x, sigma, conditions, guidance=scales(scale, sigma))


def guided(
    network: Callable[..., Tensor], scale: Scale, null: Conditions | None, *, embeds: bool
) -> Velocity:
    """Return the guided velocity field of a network.

    A network that `embeds` guidance needs one forward; any other runs over a doubled batch: once
    with the conditions and once with `null`, the same samples' conditions with the null prompt.
    Raises ValueError if `null` is needed and missing.
    """
    if forwards_per_step(scale, embeds=embeds) == 1:
        return embedded(network, scale, embeds=embeds)
    without = demand_null(null)

    def call(x: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        both = Conditions.cat([conditions, without])
        v, v_null = network(torch.cat([x, x]), torch.cat([sigma, sigma]), both).chunk(2)
        return guide(v, v_null, scale)

    return call
