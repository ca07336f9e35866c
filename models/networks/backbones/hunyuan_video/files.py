"""Published files of HunyuanVideo: other names, and fewer input channels."""

from collections.abc import Iterable, Iterator

import torch
from diffusers.loaders.single_file_utils import convert_hunyuan_video_transformer_to_diffusers

from magicdistill.models.networks.backbones.backbone import TensorsByName
from magicdistill.models.networks.backbones.hunyuan_video.original_names import (
    DOUBLE,
    ENDS,
    REFINER,
    REFINER_STEM,
    OriginalNames,
)

PATCH_EMBEDDING = "x_embedder.proj.weight"
ORIGINAL_PATCH_EMBEDDING = "img_in.proj.weight"
NAMES = OriginalNames(
    outside={
        **ENDS,
        "time_in.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
        "time_in.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
        "guidance_in.mlp.0": ("time_text_embed.guidance_embedder.linear_1",),
        "guidance_in.mlp.2": ("time_text_embed.guidance_embedder.linear_2",),
        "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
        "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    },
    blocks={
        "transformer_blocks": (
            "double_blocks",
            {
                **DOUBLE,
                "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
                "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            },
        ),
        "single_transformer_blocks": (
            "single_blocks",
            {
                "modulation.linear": ("norm.linear",),
                "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
                "linear2": ("proj_out",),
                "q_norm": ("attn.norm_q",),
                "k_norm": ("attn.norm_k",),
            },
        ),
        REFINER_STEM: REFINER,
    },
)


def in_diffusers_names(part: TensorsByName) -> TensorsByName:
    """Rename the tensors of the original HunyuanVideo file."""
    if ORIGINAL_PATCH_EMBEDDING in part:
        return convert_hunyuan_video_transformer_to_diffusers(part)
    return part


def widened(parts: Iterable[TensorsByName], num_extra: int) -> Iterator[TensorsByName]:
    """Add input channels with zero weights to the patch embedding (d c kt kh kw).

    A fresh image-to-video model equals the text-to-video one. Known: 003 section 3.
    """
    for part in parts:
        if PATCH_EMBEDDING in part:
            weight = part[PATCH_EMBEDDING]
            zeros = weight.new_zeros(len(weight), num_extra, *weight.shape[2:])
            part = part | {PATCH_EMBEDDING: torch.cat([weight, zeros], dim=1)}
        yield part
