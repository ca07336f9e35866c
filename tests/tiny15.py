"""The smallest HunyuanVideo-1.5, and conditions of every kind for it."""

from typing import Any

import torch

from magicdistill.models.networks.backbones.hunyuan_video15.shapes import HunyuanVideo15Config
from magicdistill.models.networks.conditioning.conditions import Conditions

FIELDS: dict[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 12,
    "num_layers": 3,
    "num_refiner_layers": 1,
    "rope_axes_dim": (4, 4, 4),
    "text_embed_dim": 6,
    "text_embed_2_dim": 5,
    "image_embed_dim": 7,
    "num_text_tokens": 5,
    "latent_channels": 4,
}


def tiny15_shapes(**changes: Any) -> HunyuanVideo15Config:
    """Return its shapes, with some of them changed."""
    return HunyuanVideo15Config(**FIELDS | changes)


def tiny15_conditions(
    text: tuple[int, ...], glyphs: tuple[int, ...] = (), num_image: int = 0
) -> Conditions:
    """Return random conditions of prompts and quoted words of so many valid tokens, for latents
    of 2 x 4 sides; without `glyphs` or image tokens these are absent."""
    batch = len(text)
    return Conditions(
        text=torch.randn(batch, 5, 6),
        text_mask=torch.arange(5) < torch.tensor(text)[:, None],
        pooled=torch.zeros(batch, 0),
        image_prior=torch.randn(batch, 4, 1, 2, 4),
        image_tokens=torch.randn(batch, num_image, 7) if num_image else None,
        glyphs=torch.randn(batch, 4, 5) if glyphs else None,
        glyph_mask=torch.arange(4) < torch.tensor(glyphs)[:, None] if glyphs else None,
    )
