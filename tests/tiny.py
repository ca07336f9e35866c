"""The smallest transformer that all parts of the project take, and arguments of its forward."""

from typing import Any

import torch
from torch import Tensor

from magicdistill.models.networks.backbones.hunyuan_video.shapes import HunyuanVideoConfig
from magicdistill.models.networks.backbones.wan.shapes import WanConfig
from magicdistill.models.networks.conditioning.conditions import Conditions

FIELDS: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "rope_axes_dim": (4, 4, 4),
    "text_embed_dim": 6,
    "pooled_projection_dim": 6,
    "num_text_tokens": 2,
    "latent_channels": 4,
}


def tiny_shapes(**changes: Any) -> HunyuanVideoConfig:
    """Return its shapes, with some of them changed."""
    return HunyuanVideoConfig(**FIELDS | changes)


def tiny_inputs() -> tuple[Tensor, Tensor, Conditions]:
    """Return latents of 3 x 12 x 12, which are 108 video tokens, their noise level and conditions
    of a prompt of four tokens without padding, for `tiny_shapes(num_text_tokens=4)`."""
    conditions = Conditions(
        text=torch.randn(1, 4, 6),
        text_mask=torch.ones(1, 4, dtype=torch.bool),
        pooled=torch.randn(1, 6),
        image_prior=torch.randn(1, 4, 1, 12, 12),
    )
    return torch.randn(1, 4, 3, 12, 12), torch.rand(1), conditions


def tiny_wan(**changes: Any) -> WanConfig:
    """Return the shapes of the smallest Wan."""
    fields: dict[str, Any] = {
        "num_attention_heads": 4,
        "attention_head_dim": 12,
        "num_layers": 3,
        "ffn_dim": 96,
        "text_embed_dim": 6,
        "latent_channels": 4,
    }
    return WanConfig(**fields | changes)


def tiny_wan_inputs() -> tuple[Tensor, Tensor, Conditions]:
    """Return latents of 3 x 4 x 8, which are 24 video tokens, their noise levels and conditions of
    two prompts of different lengths."""
    torch.manual_seed(1)
    conditions = Conditions(
        text=torch.randn(2, 5, 6),
        text_mask=torch.arange(5) < torch.tensor([[5], [2]]),
        pooled=torch.zeros(2, 0),
        image_prior=torch.randn(2, 4, 1, 4, 8),
    )
    return torch.randn(2, 4, 3, 4, 8), torch.tensor([0.4, 0.7]), conditions
