"""The parts of a network and the kinds of gradient by which a plan counts."""

from typing import Literal, NamedTuple

Gradient = Literal["none", "inputs", "lora", "weights"]
"""What a backward computes: nothing, the input's gradient through frozen weights, that and a
LoRA's, or the gradient of all weights."""
Part = Literal["all", "features", "discriminator"]
"""The whole transformer, its part before the discriminator's features, or the discriminator's own
block."""


class BlockCosts(NamedTuple):
    """What equal blocks cost, each for one sample."""

    count: int
    """Number of such blocks that a forward goes through."""
    linear: float
    """Operations of the linears in a forward over the whole sample. Each rank that shares it counts
    the text, which all of them hold."""
    attention: float
    """Operations of attention in a forward over the whole sample."""
    saved_bytes: float
    """Bytes that one rank keeps for the backward, where nothing is recomputed."""
    attention_bytes: float = 0
    """Bytes that attention returns on one rank, which selective recomputation keeps."""
    lora: float = 0
    """Operations of the LoRA's branches in a forward over the whole sample."""
