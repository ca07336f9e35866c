"""What a training method says of itself; all that the platform knows of a method."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from magicdistill.models.config import Config
from magicdistill.models.methods.forward_passes import Update
from magicdistill.models.networks.backbones.base import BackboneConfig
from magicdistill.models.networks.config import LoraConfig
from magicdistill.models.networks.presets import ModelConfig
from magicdistill.models.objectives.config import SamplerConfig

if TYPE_CHECKING:
    from magicdistill.models.networks.placement import Placement
    from magicdistill.models.objectives.types import Method
else:  # both modules import torch, which `--help` does without
    Method = Placement = Any


class MethodConfig(Config):
    """The configuration of a training method, and its answers to what the platform asks.

    A method of one's own is a subclass that names itself in a `Literal`, builds its training
    class and overrides the answers that are others. The answers here are those of a student that
    is distilled from cached latents by updates of the role `generator`.
    """

    roles: ClassVar[tuple[str, ...]] = ("generator",)
    """The roles that it trains; none where the teacher itself is the result."""
    makes: ClassVar[Literal["teacher", "student", "vae"]] = "student"
    """The network that a run of it ends with."""
    data: ClassVar[Literal["latents", "pixels"]] = "latents"
    """What it trains on: cached latents with their conditions, or windows of pixels."""
    notable: ClassVar[tuple[str, ...]] = ()
    """Settings that the report of a run names beside the method."""

    name: str
    """Name of the method, which decides its other fields."""

    @property
    def trained_sampler(self) -> SamplerConfig | None:
        """The sampler that its generator is trained for; None where it takes any."""
        return None

    @property
    def purpose(self) -> str:
        """What a run of it is for: one of the words by which MLflow's runs are told apart."""
        sampler = self.trained_sampler
        return "1-step" if sampler is not None and sampler.num_steps == 1 else "distillation"

    @property
    def headline(self) -> str:
        """The first line of a run's description, in Markdown."""
        sampler = self.trained_sampler
        steps = f" to {sampler.num_steps} step{'s'[: sampler.num_steps - 1]}" if sampler else ""
        return f"**Distillation{steps}** by `{self.name}`"

    @property
    def noise_levels(self) -> tuple[float, float]:
        """Smallest and largest noise level of its network; not 0 and 1 for one of two experts."""
        return 0.0, 1.0

    @property
    def uses_pairs(self) -> bool:
        """Whether it trains on noise-data pairs, which the recipe's `pairs` makes."""
        return False

    @property
    def distils_guidance(self) -> bool:
        """Whether it teaches the guidance scale, for which clips need captions."""
        return False

    @property
    def shares_batch(self) -> bool:
        """Whether all updates of a cycle see the same samples."""
        return False

    @property
    def lora_rank(self) -> int:
        """The rank of the LoRA that it trains; 0 where it trains none."""
        return 0

    @property
    def generator_lora(self) -> LoraConfig | None:
        """The LoRA as which it trains the generator; None where it trains all weights."""
        return None

    def fitted_to(self, shapes: BackboneConfig) -> "MethodConfig":
        """Return the method with the settings that a backbone decides where they are left open."""
        return self

    def updates_per_cycle(self, role: str) -> int:
        """Return how often a cycle updates a role."""
        return 1

    def problems(self, model: ModelConfig, num_cycles: int) -> Iterator[str]:
        """Yield why it cannot be trained with a model, or in so many cycles: the field, its value
        and the fix."""
        return iter(())

    def cycle_updates(self, *, embeds: bool) -> Sequence[Update]:
        """Return what a cycle runs; nothing for a method whose memory and time are not planned.

        `embeds` says whether the teacher takes the guidance scale as an input.
        """
        return ()

    def build(self, model: ModelConfig, placement: Placement) -> Method:
        """Build its networks from the recipe's weights, where `placement` keeps them.

        Random initial weights come from torch's global generator: seed it on every rank alike.

        Raises:
            ValueError: if the method trains nothing.
        """
        raise ValueError(f"method.name {self.name} trains nothing")
