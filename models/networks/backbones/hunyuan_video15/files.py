"""Published files of HunyuanVideo-1.5: names of the original code in diffusers' own.

Original names: the public repository Tencent-Hunyuan/HunyuanVideo-1.5,
hyvideo/models/transformers; diffusers' conversion script gives the correspondence.
"""

import re

import torch
from torch import Tensor

from magicdistill.models.networks.backbones.backbone import TensorsByName

ORIGINAL_PREFIXES = (
    "img_in.",
    "txt_in.",
    "byt5_in.",
    "vision_in.",
    "time_in.",
    "time_r_in.",
    "cond_type_embedding.",
    "double_blocks.",
    "final_layer.",
)
RENAMED = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^img_in\.", "x_embedder."),
        (r"^time_in\.mlp\.0", "time_embed.timestep_embedder.linear_1"),
        (r"^time_in\.mlp\.2", "time_embed.timestep_embedder.linear_2"),
        (r"^time_r_in\.mlp\.0", "time_embed.timestep_embedder_r.linear_1"),
        (r"^time_r_in\.mlp\.2", "time_embed.timestep_embedder_r.linear_2"),
        (r"^txt_in\.t_embedder\.mlp\.0", "txt_in.time_text_embed.timestep_embedder.linear_1"),
        (r"^txt_in\.t_embedder\.mlp\.2", "txt_in.time_text_embed.timestep_embedder.linear_2"),
        (r"^txt_in\.c_embedder\.", "txt_in.time_text_embed.text_embedder."),
        (r"^txt_in\.input_embedder\.", "txt_in.proj_in."),
        (r"^txt_in\.individual_token_refiner\.blocks\.", "txt_in.token_refiner.refiner_blocks."),
        (r"self_attn_proj\.", "attn.to_out.0."),
        (r"self_attn_qkv\.", "attn.to_qkv."),
        (r"(refiner_blocks.*)adaLN_modulation\.1\.", r"\1norm_out.linear."),
        (r"(refiner_blocks.*)mlp\.", r"\1ff."),
        (r"^txt_in\.", "context_embedder."),
        (r"^byt5_in\.layernorm\.", "byt5_in.norm."),
        (r"^byt5_in\.fc(\d)\.", r"byt5_in.linear_\1."),
        (r"^byt5_in\.", "context_embedder_2."),
        (r"^vision_in\.proj\.0\.", "image_embedder.norm_in."),
        (r"^vision_in\.proj\.1\.", "image_embedder.linear_1."),
        (r"^vision_in\.proj\.3\.", "image_embedder.linear_2."),
        (r"^vision_in\.proj\.4\.", "image_embedder.norm_out."),
        (r"^cond_type_embedding\.", "cond_type_embed."),
        (r"^double_blocks\.", "transformer_blocks."),
        (r"img_mod\.", "norm1."),
        (r"txt_mod\.", "norm1_context."),
        (r"img_attn_([qkv])\.", r"attn.to_\1."),
        (r"txt_attn_([qkv])\.", r"attn.add_\1_proj."),
        (r"img_attn_([qk])_norm\.", r"attn.norm_\1."),
        (r"txt_attn_([qk])_norm\.", r"attn.norm_added_\1."),
        (r"img_attn_proj\.", "attn.to_out.0."),
        (r"txt_attn_proj\.", "attn.to_add_out."),
        (r"img_mlp\.", "ff."),
        (r"txt_mlp\.", "ff_context."),
        (r"\.fc1\.", ".net.0.proj."),
        (r"\.fc2\.", ".net.2."),
        (r"^final_layer\.adaLN_modulation\.1\.", "norm_out.linear."),
        (r"^final_layer\.linear\.", "proj_out."),
    )
)
"""Replacements, in order."""
FUSED = "attn.to_qkv."
"""The refiner's queries, keys and values, which are one linear in the original."""
LAST_MODULATION = "norm_out.linear."
"""Of the output: the original has shift before scale, diffusers scale before shift."""


def in_diffusers_names(part: TensorsByName) -> TensorsByName:
    """Rename the tensors of an original file; those of diffusers are not changed."""
    if not any(name.startswith(ORIGINAL_PREFIXES) for name in part):
        return part
    renamed: TensorsByName = {}
    for original, tensor in part.items():
        name = original
        for pattern, replacement in RENAMED:
            name = pattern.sub(replacement, name)
        renamed |= _parts(name, tensor)
    return renamed


def _parts(name: str, tensor: Tensor) -> TensorsByName:
    if FUSED in name:
        return {
            name.replace(FUSED, f"attn.to_{kind}."): part
            for kind, part in zip("qkv", tensor.chunk(3), strict=True)
        }
    if name.startswith(LAST_MODULATION):
        shift, scale = tensor.chunk(2)
        return {name: torch.cat([scale, shift])}
    return {name: tensor}
