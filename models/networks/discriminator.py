"""The discriminator on the backbone's features: 002 section 3.4 (papers as in docs/method.md)."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from diffusers import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn

from magicdistill.models.networks.backbones.registry import backbone_of
from magicdistill.models.networks.placement import WHOLE, Placement


class Discriminator(nn.Module):
    """A copy of the backbone's first block after the features, and a head.

    The block starts from the backbone's weights and shares none with it. The head has one logit for
    each video token; the paper says nothing of it, and this one is ours.
    """

    def __init__(self, transformer: ModelMixin, placement: Placement = WHOLE) -> None:
        super().__init__()
        backbone = backbone_of(transformer)
        first, width = backbone.discriminator_block, backbone.model_dim
        self.backbone = type(backbone)
        with placement.gathered(list(first.parameters())):
            self.block = copy.deepcopy(first)
        self.block.requires_grad_(requires_grad=True)
        self.checkpointing: Callable[..., Any] | None = None
        """Runs the block so that its backward recomputes it; None keeps its activations."""
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        ).to(transformer.dtype)

    def forward(self, features: tuple[Any, ...]) -> Float[Tensor, "b n"]:
        """Return float32 logits, one for each video token, positive for real clips."""
        if torch.is_grad_enabled() and self.checkpointing is not None:
            output = self.checkpointing(self.block, *features)
        else:
            output = self.block(*features)
        video = output[0] if isinstance(output, tuple) else output
        return self.head(video).squeeze(-1).float()
