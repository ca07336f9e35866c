"""Mean and standard deviation of each latent channel, over more rows than memory could hold."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

DEAD_STD = 1e-4
"""A channel that varies less, where living ones have about 1, is the same value everywhere."""


@dataclass(frozen=True)
class ChannelStatistics:
    """What the latents of one version look like."""

    version: str
    num_rows: int
    mean: Float[Tensor, " c"]
    std: Float[Tensor, " c"]

    @property
    def dead(self) -> list[int]:
        """Channels that say nothing. Their files are sound: made anew they would be equal."""
        return (self.std < DEAD_STD).nonzero().flatten().tolist()

    @classmethod
    def of(cls, version: str, moments: Sequence[Float[Tensor, "3 c"]]) -> "ChannelStatistics":
        """Bring the moments of a version's rows together."""
        count, total, squares = torch.stack(list(moments)).sum(0)
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        return cls(version, len(moments), mean, variance.sqrt())


def moments_of(latents: Float[Tensor, "c f h w"]) -> Float[Tensor, "3 c"]:
    """Return the sums of a row's values to the powers of 0, 1 and 2, in float64."""
    values = latents.double()
    return torch.stack([(values**power).sum((1, 2, 3)) for power in range(3)])
