"""What passes between the training loop and a method."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from jaxtyping import Float
from torch import Tensor, nn

from magicdistill.models.diffusion.draws import Draws
from magicdistill.models.networks.conditions import Conditions

Networks = Mapping[str, Callable]
"""One callable per role: the engine of the role in turn, the plain modules of the others."""


@dataclass(frozen=True)
class Batch:
    """Clean samples and what they are generated from."""

    x0: Float[Tensor, "b c f h w"]
    """Normalised latents; pixels in [-1, 1] where a VAE is trained."""
    conditions: Conditions | None
    positions: Sequence[int]
    """Global sample positions in the stream of training samples."""


@dataclass(frozen=True)
class Loss:
    """A scalar to descend and named scalars to look at, none of them synchronised."""

    total: Float[Tensor, ""]
    terms: dict[str, Tensor] = field(default_factory=dict)


class Method(Protocol):
    """A training method: trained roles, their turns in a cycle, and their losses."""

    modules: Mapping[str, nn.Module]
    """The module behind each role; one engine wraps each."""

    @property
    def shares_batch(self) -> bool:
        """Whether all turns of a cycle see the same samples."""
        ...

    def turns(self, cycle: int) -> Sequence[str]:
        """Return the roles that a cycle updates, in order."""
        ...

    def turn(self, role: str) -> AbstractContextManager[None]:
        """Prepare the networks for a role's losses and backwards, and restore them after."""
        ...

    def loss(self, role: str, networks: Networks, batch: Batch, draws: Draws) -> Loss:
        """Compute a role's loss on a batch."""
        ...
