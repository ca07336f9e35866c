"""Ulysses sequence parallelism: every rank of a group keeps a share of the video's tokens.

Between the blocks a rank holds its share of the video tokens and all text tokens; around
attention an all-to-all trades tokens for heads, so that a rank attends over all tokens with its
share of the heads. Known: DeepSpeed-Ulysses (arXiv 2309.14509).

All ranks of a group get the same sample and draws, and all return the whole output. Every
exchange has its exact adjoint as its backward. The gradients of a parameter therefore differ
between ranks, and their mean over the ranks is its gradient in the network that is not split:
the same mean that data parallelism takes over the whole job.
"""

from typing import Any

import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single

from magicdistill.models.networks.config import demand_share


class SequenceGroup:
    """The ranks that share one sample; without a process group, this rank alone."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.size = 1 if group is None else group.size()
        self.rank = 0 if group is None else group.rank()

    def split(self, tokens: Float[Tensor, "..."], dim: int) -> Float[Tensor, "..."]:
        """Return this rank's share of the tokens along `dim`, in memory of its own.

        A view would keep the memory of all tokens. Raises ValueError where the tokens do not divide
        over the ranks.
        """
        demand_share("video tokens", tokens.shape[dim], self.size)
        return tokens.chunk(self.size, dim)[self.rank].clone()

    def gather(self, share: Float[Tensor, "..."], dim: int) -> Float[Tensor, "..."]:
        """Return the concatenation of all ranks' shares along `dim`.

        Every rank sends its share to each by the same exchange. Its backward therefore adds up the
        gradients that all ranks have for the share.
        """
        return torch.cat(self._exchange(share.expand(self.size, *share.shape)).unbind(), dim)

    def split_output(self, module: nn.Module) -> None:
        """Let a module return this rank's share of its tokens (b n d) from now on."""

        def split(module: nn.Module, inputs: Any, tokens: Tensor) -> Tensor:
            return self.split(tokens, dim=1)

        module.register_forward_hook(split)

    def gather_output(self, module: nn.Module) -> None:
        """Let a module return the tokens (b n d) of all ranks from now on."""

        def gather(module: nn.Module, inputs: Any, tokens: Tensor) -> Tensor:
            return self.gather(tokens, dim=1)

        module.register_forward_hook(gather)

    def to_heads(self, tokens: Float[Tensor, "b n h d"]) -> Float[Tensor, "b all_n own_h d"]:
        """Trade a share of the tokens with all heads for all tokens with a share of the heads."""
        parts = rearrange(tokens, "b n (p h) d -> p b n h d", p=self.size)
        return rearrange(self._exchange(parts), "p b n h d -> b (p n) h d")

    def to_tokens(self, heads: Float[Tensor, "b n h d"]) -> Float[Tensor, "b own_n all_h d"]:
        """Undo `to_heads`."""
        parts = rearrange(heads, "b (p n) h d -> p b n h d", p=self.size)
        return rearrange(self._exchange(parts), "p b n h d -> b n (p h) d")

    def own_heads(self, heads: Float[Tensor, "b n h d"]) -> Float[Tensor, "b n own_h d"]:
        """Return this rank's share of the heads of tokens that every rank holds."""
        return heads.chunk(self.size, dim=2)[self.rank]

    def _exchange(self, parts: Float[Tensor, "p ..."]) -> Float[Tensor, "p ..."]:
        """Send part i to rank i; return what the ranks sent here, in their order."""
        if self.group is None:
            return parts
        return all_to_all_single(parts.contiguous(), None, None, self.group)


WHOLE_SEQUENCE = SequenceGroup()


def join_sequence_group(size: int) -> SequenceGroup:
    """Divide the ranks of the job, in order, into groups of `size`; return this rank's group.

    Neighbouring ranks share a group because they are mostly on one node, where exchanges are
    fastest. Every rank of the job calls it. Raises ValueError where the ranks do not divide.
    """
    if size == 1:
        return WHOLE_SEQUENCE
    demand_share("workers", dist.get_world_size(), size)
    group, _ = dist.new_subgroups(size)
    assert isinstance(group, dist.ProcessGroup)  # every rank belongs to one
    return SequenceGroup(group)
