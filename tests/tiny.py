"""The smallest transformer that all parts of the project take."""

from typing import Any

from magicdistill.models.networks.backbones.hunyuan_video import HunyuanVideoConfig

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
