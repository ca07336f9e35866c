"""Batches of the nano preset, made of noise."""

import torch

from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.objectives.types import Batch, Pair


def sample(position: int) -> Batch:
    """A sample of a size of its own, so that a ratio of means is no mean of ratios."""
    generator = torch.Generator().manual_seed(position)
    x0 = (1 + 2 * (position % 4)) * torch.randn(1, 16, 2, 4, 4, generator=generator)
    text = torch.randn(2, 1, 4, 64, generator=generator)
    pooled = torch.randn(2, 1, 64, generator=generator)
    mask = torch.arange(4)[None] <= position % 4
    given, null = (Conditions(text[i], mask, pooled[i], x0[:, :, :1]) for i in (0, 1))
    noise, video = torch.randn(2, *x0.shape, generator=generator)
    return Batch(x0, given, [position], null, Pair(noise, video))
