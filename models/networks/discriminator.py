"""The discriminator on the backbone's features (002 section 3.4)."""

import copy
from typing import NamedTuple

import torch
from diffusers import HunyuanVideoTransformer3DModel
from jaxtyping import Float
from torch import Tensor, nn


class Features(NamedTuple):
    """What the first single-stream block takes: the output of the last double-stream block."""

    video: Float[Tensor, "b n d"]
    text: Float[Tensor, "b m d"]
    embedding: Float[Tensor, "b d"]
    """The time and pooled-text embedding that modulates the blocks."""
    mask: Tensor
    rotary: tuple[Tensor, Tensor]


def double_stream_features(
    transformer: HunyuanVideoTransformer3DModel,
    latents: Float[Tensor, "b d f h w"],
    timestep: Float[Tensor, " b"],
    text: Float[Tensor, "b m e"],
    text_mask: Tensor,
    pooled: Float[Tensor, "b p"],
) -> Features:
    """Run the transformer up to its single-stream blocks; `latents` has all input channels."""
    rotary = transformer.rope(latents)
    embedding, _ = transformer.time_text_embed(timestep, pooled, None)
    video = transformer.x_embedder(latents)
    text = transformer.context_embedder(text, timestep, text_mask)
    mask = torch.cat([text_mask.new_ones(video.shape[:2]), text_mask.bool()], dim=1)
    mask = mask[:, None, None]
    for block in transformer.transformer_blocks:
        video, text = block(video, text, embedding, mask, rotary)
    return Features(video, text, embedding, mask, rotary)


class Discriminator(nn.Module):
    """A copy of the first single-stream block and a head with one logit per video token.

    The block starts from the backbone's weights and shares none. The head is not in the paper.
    """

    def __init__(self, transformer: HunyuanVideoTransformer3DModel) -> None:
        super().__init__()
        width = transformer.config["num_attention_heads"] * transformer.config["attention_head_dim"]
        self.block = copy.deepcopy(transformer.single_transformer_blocks[0])
        self.block.requires_grad_(requires_grad=True)
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )

    def forward(self, features: Features) -> Float[Tensor, "b n"]:
        """Return logits, positive for real."""
        video, _ = self.block(
            features.video, features.text, features.embedding, features.mask, features.rotary
        )
        return self.head(video).squeeze(-1).float()
