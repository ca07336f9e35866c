"""Keep what attention returns in the forward, so that a recomputed block need not attend again."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten
ATTENTION = {
    aten._scaled_dot_product_cudnn_attention,
    aten._scaled_dot_product_efficient_attention,
    aten._scaled_dot_product_flash_attention,  # version 3 too, which replaces what is below it
    aten._scaled_dot_product_flash_attention_for_cpu,
}
"""The operators that fused attention comes down to, whichever the kernel."""


def keep_attention() -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
    """Return the contexts of a block's forward and of its recomputation.

    torch's own contexts for this demand that both run the same operators. They do not under
    ZeRO-3, whose gathers run inside a block and differ between forward and backward.
    """
    forward = _Keeping()
    return forward, _Returning(forward.kept)


class _Keeping(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in ATTENTION:
            # the tensors themselves will refer to the graph that holds this list
            self.kept.append(tree_map_only(Tensor, torch.detach, out))
        return out


class _Returning(TorchDispatchMode):
    def __init__(self, kept: list[Any]) -> None:
        super().__init__()
        self.kept = kept
        self.next: Iterator[Any] = iter(())

    def __enter__(self) -> Any:
        self.next = iter(self.kept)
        return super().__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket in ATTENTION:
            return tree_map_only(Tensor, torch.detach, next(self.next))
        return func(*args, **(kwargs or {}))
