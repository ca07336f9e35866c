"""The forward of diffusers' transformer in its two halves, over valid text tokens only.

diffusers builds a dense mask over all tokens, which no flash kernel takes. Here padding is cut
off the text, so that a mask is needed only if the prompts of a batch differ in length.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from diffusers import HunyuanVideoTransformer3DModel
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from magicdistill.models.networks.lora import checkpointed


class Features(NamedTuple):
    """Output of the last double-stream block and input of the first single-stream block."""

    video: Float[Tensor, "b n d"]
    text: Float[Tensor, "b m d"]
    modulation: tuple[Any, ...]
    """The block's further arguments: embedding, mask or None, rotary phases, first-frame
    embedding and number of first-frame tokens."""


def predict(
    transformer: HunyuanVideoTransformer3DModel, inputs: Mapping[str, Any]
) -> Float[Tensor, "b c f h w"]:
    """Run the whole transformer on the arguments of `network_inputs`; equals its own forward."""
    video, text, modulation = double_stream_features(transformer, inputs)
    for block in transformer.single_transformer_blocks:
        video, text = run_block(transformer, block, video, text, *modulation)
    patches = transformer.proj_out(transformer.norm_out(video, modulation[0]))
    _, height, width = _grid(transformer, inputs["hidden_states"])
    side = transformer.config["patch_size"]
    return rearrange(
        patches,
        "b (f h w) (c t y x) -> b c (f t) (h y) (w x)",
        h=height,
        w=width,
        t=transformer.config["patch_size_t"],
        y=side,
        x=side,
    )


def double_stream_features(
    transformer: HunyuanVideoTransformer3DModel, inputs: Mapping[str, Any]
) -> Features:
    """Run the transformer's double-stream blocks on the arguments of `network_inputs`."""
    latents, timestep = inputs["hidden_states"], inputs["timestep"]
    text, text_mask, is_even = without_padding(
        inputs["encoder_hidden_states"], inputs["encoder_attention_mask"]
    )
    embedding, first_frame_embedding = transformer.time_text_embed(
        timestep, inputs["pooled_projections"], inputs["guidance"]
    )
    video = transformer.x_embedder(latents)
    text = transformer.context_embedder(text, timestep, text_mask)
    mask = None
    if not is_even:
        mask = torch.cat([text_mask.new_ones(video.shape[:2]), text_mask], dim=1)[:, None, None]
    _, height, width = _grid(transformer, latents)
    modulation = (
        embedding,
        mask,
        transformer.rope(latents),
        first_frame_embedding,
        height * width,
    )
    for block in transformer.transformer_blocks:
        video, text = run_block(transformer, block, video, text, *modulation)
    return Features(video, text, modulation)


def without_padding(
    text: Float[Tensor, "b m d"], mask: Bool[Tensor, "b m"]
) -> tuple[Float[Tensor, "b k d"], Bool[Tensor, "b k"], bool]:
    """Cut the text tokens to the longest prompt; tell whether all prompts are that long.

    Valid tokens come first. Reading the lengths waits for the device once.
    """
    lengths = mask.sum(dim=1).tolist()
    longest = max(lengths)
    return text[:, :longest], mask[:, :longest], min(lengths) == longest


def run_block(
    transformer: HunyuanVideoTransformer3DModel, block: nn.Module, *inputs: Any
) -> tuple[Tensor, Tensor]:
    """Run a block; recompute it in the backward if the transformer has gradient checkpointing."""
    if torch.is_grad_enabled() and transformer.gradient_checkpointing:
        return checkpointed(block, *inputs)
    return block(*inputs)


def _grid(
    transformer: HunyuanVideoTransformer3DModel, latents: Float[Tensor, "b c f h w"]
) -> tuple[int, int, int]:
    """Return the numbers of patches along time, height and width."""
    frames, height, width = latents.shape[2:]
    side = transformer.config["patch_size"]
    return frames // transformer.config["patch_size_t"], height // side, width // side
