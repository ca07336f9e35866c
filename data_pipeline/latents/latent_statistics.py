"""Mean and standard deviation of each latent channel, over more rows than memory could hold."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

DEAD_STD = 1e-4
"""A channel with a smaller standard deviation is constant; other channels have about 1."""


@dataclass(frozen=True)
class ChannelStatistics:
    """Statistics of each latent channel over all rows of one version of the cache."""

    version: str
    num_rows: int
    mean: Float[Tensor, " c"]
    std: Float[Tensor, " c"]
    """Population standard deviation, over all values of a channel in all rows."""

    @property
    def dead(self) -> list[int]:
        """Indices of constant channels. Their files are sound: encoding again changes nothing."""
        return (self.std < DEAD_STD).nonzero().flatten().tolist()

    @classmethod
    def of(cls, version: str, moments: Sequence[Float[Tensor, "3 c"]]) -> "ChannelStatistics":
        """Combine the `moments_of` all rows of a version."""
        count, total, squares = torch.stack(list(moments)).sum(0)
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        return cls(version, len(moments), mean, variance.sqrt())


def moments_of(latents: Float[Tensor, "c f h w"]) -> Float[Tensor, "3 c"]:
    """Return for each channel the sums of its values to the powers of 0, 1 and 2, in float64."""
    values = latents.double()
    return torch.stack([(values**power).sum((1, 2, 3)) for power in range(3)])
