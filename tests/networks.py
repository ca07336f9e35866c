"""The smallest transformer as a network, and comparisons of weights."""

from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import Tensor, nn

from tests.tiny import tiny_shapes


def network(seed: int = 0, **changes: Any) -> HunyuanVideoTransformer3DModel:
    """Return the network with random weights, some of its arguments changed."""
    torch.manual_seed(seed)
    return HunyuanVideoTransformer3DModel(**tiny_shapes().arguments() | changes).eval()


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Return all weights by name."""
    return dict(module.state_dict())


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    """Demand weights that are equal to the bit."""
    torch.testing.assert_close(weights(found), weights(expected), rtol=0, atol=0)
