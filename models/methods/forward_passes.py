"""The forward passes that a cycle of training runs, from which a plan follows."""

from dataclasses import dataclass

from magicdistill.models.networks.backbones.costs import Gradient, Part


@dataclass(frozen=True)
class ForwardPass:
    """A forward pass through a network, with its backward."""

    role: str
    what: str
    """What it computes, for people."""
    gradient: Gradient = "none"
    samples: int = 1
    """Samples in one batch for each sample of the micro-batch."""
    repeats: int | float = 1
    """Number of such forward passes one after the other; a mean where the number is drawn."""
    most: int | None = None
    """Largest number where it is drawn."""
    blocks: Part = "all"
    lora_rank: int = 0
    """Rank of the LoRA in the blocks, where that is not the critic's own."""


@dataclass(frozen=True)
class Update:
    """An update of a role: the graphs of its forward passes live until its backward."""

    name: str
    forwards: tuple[ForwardPass, ...]
    times: int = 1
    """Number of such updates in a cycle."""


def guided_forwards(scale: float | None, *, embeds: bool) -> int:
    """Return the forward passes that a guided velocity takes; None is a scale that is drawn.

    `embeds` says whether the network takes the guidance scale as an input.
    """
    return 1 if embeds or scale == 1 else 2


def cfg_distillation_forwards(teacher: str, *, embeds: bool) -> tuple[ForwardPass, ForwardPass]:
    """Return the forward passes of guidance distillation with the teacher in the role `teacher`."""
    return (
        ForwardPass(teacher, "guided teacher", samples=guided_forwards(None, embeds=embeds)),
        ForwardPass("generator", "guidance distillation", "weights", samples=2),
    )
