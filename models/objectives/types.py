"""What passes between the training loop and a method."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.networks.conditioning.conditions import Conditions

Networks = Mapping[str, Callable]
"""One callable per role: the engine of the role in turn, the plain modules of the others."""


class Pair(NamedTuple):
    """What a frozen generator made of noise, each (b c f h w)."""

    noise: Tensor
    video: Tensor


@dataclass(frozen=True)
class Batch:
    """Clean samples and what they are generated from."""

    x0: Float[Tensor, "b c f h w"]
    """Normalised latents; pixels in [-1, 1] where a VAE is trained."""
    conditions: Conditions | None
    positions: Sequence[int]
    """Global sample positions in the stream of training samples."""
    null: Conditions | None = None
    """The conditions with the null prompt in place of the text, which guidance compares with."""
    pair: Pair | None = None
    """Noise and the video of it under the same conditions; rollouts then start from this noise."""

    def to(self, device: torch.device | str) -> "Batch":
        """Move every tensor to a device."""
        return replace(
            self,
            x0=self.x0.to(device),
            conditions=self.conditions and self.conditions.to(device),
            null=self.null and self.null.to(device),
            pair=self.pair and Pair(*(tensor.to(device) for tensor in self.pair)),
        )


@dataclass(frozen=True)
class Loss:
    """A scalar to descend and named scalars to look at, none of them synchronised."""

    total: Float[Tensor, ""]
    terms: dict[str, Tensor] = field(default_factory=dict)

    def __add__(self, other: "Loss") -> "Loss":
        return Loss(self.total + other.total, self.terms | other.terms)


@runtime_checkable
class Method(Protocol):
    """A training method: trained roles, their turns in a cycle, and their losses."""

    modules: Mapping[str, nn.Module]
    """The module behind each role; one engine wraps each."""

    @property
    def shares_batch(self) -> bool:
        """Whether all turns of a cycle see the same samples."""
        ...

    def updates(self, cycle: int) -> Sequence[str]:
        """Return the roles that a cycle updates, in order."""
        ...

    def prepared_for(self, role: str) -> AbstractContextManager[None]:
        """Prepare the networks for a role's losses and backwards, and restore them after."""
        ...

    def loss(self, role: str, networks: Networks, batch: Batch, rng: Rng) -> Loss:
        """Compute a role's loss on a batch."""
        ...


class OneRole:
    """What methods that train one network, once a cycle, have in common."""

    shares_batch = False

    def __init__(self, role: str, module: nn.Module) -> None:
        self.modules: Mapping[str, nn.Module] = {role: module}

    def updates(self, cycle: int) -> Sequence[str]:
        """Update the role once a cycle."""
        return tuple(self.modules)

    def prepared_for(self, role: str) -> AbstractContextManager[None]:
        """Change nothing."""
        return nullcontext()
