"""What passes between the training loop and a method."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.placement import Placement

Networks = Mapping[str, Callable]
"""One callable per role: the engine of the role that is updated, the modules of the others."""


class Pair(NamedTuple):
    """Noise and the video that a frozen generator made of it, each (b c f h w)."""

    noise: Tensor
    video: Tensor


@dataclass(frozen=True)
class Batch:
    """Clean samples, and the conditions that the same samples are generated from."""

    x0: Float[Tensor, "b c f h w"]
    """Normalised latents; pixels in [-1, 1] where a VAE is trained."""
    conditions: Conditions | None
    positions: Sequence[int]
    """Global sample positions in the stream of training samples."""
    null: Conditions | None = None
    """The conditions with the null prompt in place of the text; guidance needs them."""
    pair: Pair | None = None
    """Noise and its video under the same conditions; rollouts then start from this noise."""

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
    """A scalar to descend and named scalars to log, all of them this rank's own.

    Each is a mean over samples: means over micro-batches and ranks are then those of the batch.
    """

    total: Float[Tensor, ""]
    terms: dict[str, Tensor] = field(default_factory=dict)

    def __add__(self, other: "Loss") -> "Loss":
        return Loss(self.total + other.total, self.terms | other.terms)


class ParameterGroup(NamedTuple):
    """Trained parameters of a role whose gradients are measured and clipped together."""

    parameters: Sequence[nn.Parameter]
    loss_scale: float = 1.0
    """Factor on the loss that trains them; norms and limits of the gradient are without it."""


class Lora(NamedTuple):
    """The LoRA that a method trains on a frozen transformer."""

    role: str
    """The role in whose checkpoint it is."""
    transformer: Any
    """The transformer of diffusers with the LoRA's layers."""
    prefix: str
    """Prefix of the transformer's parameters in the checkpoint."""
    weak: float = 1.0
    """Strength of the real score."""
    strong: float = 1.0
    """Strength of the fake score."""


class Method(ABC):
    """A training method: the roles that it trains, their updates in a cycle, and their losses.

    A subclass defines `loss`. The other functions here are those of a method that updates each
    role once a cycle and trains a whole transformer in the role `generator`.
    """

    shares_batch = False
    """Whether all updates of a cycle see the same samples."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        """Take the module behind each role; one engine wraps each."""
        self.modules = modules

    def updates(self, cycle: int) -> Sequence[str]:
        """Return the roles that a cycle updates, in order."""
        return tuple(self.modules)

    def parameter_groups(self, role: str) -> Mapping[str, ParameterGroup]:
        """Divide what a role trains into groups with a name, each clipped by itself."""
        parameters = self.modules[role].parameters()
        return {role: ParameterGroup([p for p in parameters if p.requires_grad])}

    def prepared_for(self, role: str) -> AbstractContextManager[None]:
        """Prepare the networks for a role's losses and backwards, and restore them afterwards."""
        return nullcontext()

    @abstractmethod
    def loss(self, role: str, networks: Networks, batch: Batch, rng: Rng) -> Loss:
        """Compute a role's loss on a batch."""

    def validation_terms(
        self, networks: Networks, latents: Tensor, conditions: Conditions, rng: Rng
    ) -> dict[str, Tensor]:
        """Return scalars to log at a validation, from the generated latents (b c f h w) of it."""
        return {}

    def save(self, directory: Path, placement: Placement) -> None:
        """Write the trained network; every rank of a sharded placement calls it, else the first."""
        from magicdistill.models.networks.transformer import VelocityModel
        from magicdistill.models.networks.weights import save_transformer

        generator = self.modules["generator"]
        assert isinstance(generator, VelocityModel)
        save_transformer(generator.transformer, directory, placement=placement)

    def lora(self) -> Lora | None:
        """Return the LoRA that can be exported; None where the method trains none."""
        return None

    def student_lora(self) -> Lora | None:
        """Return the LoRA that is the generator; None where all its weights are trained."""
        return None
