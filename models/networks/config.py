"""Settings of networks and of what is attached to them."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from magicdistill.models.config import Config


class PatchDecoderConfig(Config):
    """Shape of the fast decoder that the tiny preset has beside the autoencoder's own."""

    latent_channels: int = 16
    width: int = 64
    num_blocks: int = 5


class LoraConfig(Config):
    """A low-rank branch beside the linears of a frozen base.

    The critic's turns the base into the fake score. Rank and targets are not in the paper.
    """

    rank: int = Field(default=16, ge=1)
    """Rank of the low-rank branch."""
    targets: tuple[str, ...] = ()
    """Full-name patterns of the linears that get it; none are those of the backbone."""


Recompute = Literal["none", "selective", "full"]
"""What the backward computes again of a block: nothing, all but attention, or all."""
AttentionKernel = Literal["sdpa", "flash", "cudnn", "flash3"]
KernelChoice = Literal["auto", "sdpa", "flash", "cudnn", "flash3"]


class KernelsConfig(Config):
    """How the transformer's blocks are computed; what they compute stays the same."""

    attention: KernelChoice = "sdpa"
    """Kernel of attention: `auto` takes the fastest that the GPU and the installed packages have;
    `sdpa` lets torch choose; `flash` is torch's flash kernel and `cudnn` that of cuDNN, both in
    bf16 on GPUs, or an error; `flash3` is FlashAttention 3, which Hopper GPUs run and which is
    installed apart."""
    compile_blocks: bool = False
    """Compile the repeated blocks with torch.compile; the first cycles take minutes longer."""
    recompute_blocks: Recompute = "none"
    """What the backward computes again of each block (activation checkpointing): `full` keeps only
    its input, a fraction of the memory for a third more computation; `selective` also keeps what
    attention returns, and computes the rest again, for a few per cent more; `none` keeps all.
    true is `full`, and false is `none`."""

    @field_validator("recompute_blocks", mode="before")
    @classmethod
    def _take_yes_and_no(cls, value: object) -> object:
        return ("none", "full")[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _compiled_blocks_keep_no_attention(self) -> "KernelsConfig":
        if self.compile_blocks and self.recompute_blocks == "selective":
            raise ValueError(
                "recompute_blocks selective: what a compiled block attends cannot be kept; give "
                "full or none, or compile_blocks false"
            )
        return self


def demand_share(what: str, count: int, size: int) -> None:
    """Raise ValueError where a sequence group of `size` ranks cannot share `count` things."""
    if count % size:
        fitting = [n for n in range(1, 17) if count % n == 0]
        raise ValueError(
            f"{count} {what} do not divide over cluster.sequence_parallel {size}: choose one of "
            f"{fitting}"
        )
