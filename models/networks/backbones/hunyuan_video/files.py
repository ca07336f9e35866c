"""Published files of HunyuanVideo: other names, and fewer input channels."""

import re
from collections.abc import Iterable, Iterator, Mapping

import torch
from diffusers.loaders.single_file_utils import convert_hunyuan_video_transformer_to_diffusers

from magicdistill.models.networks.backbones.backbone import TensorsByName

PATCH_EMBEDDING = "x_embedder.proj.weight"
ORIGINAL_PATCH_EMBEDDING = "img_in.proj.weight"
LAST_MODULATION = "final_layer.adaLN_modulation.1"
"""The original code modulates by shift and scale there, diffusers by scale and shift."""
OUTSIDE = {
    "img_in.proj": ("x_embedder.proj",),
    "time_in.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
    "guidance_in.mlp.0": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.mlp.2": ("time_text_embed.guidance_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "txt_in.t_embedder.mlp.0": ("context_embedder.time_text_embed.timestep_embedder.linear_1",),
    "txt_in.t_embedder.mlp.2": ("context_embedder.time_text_embed.timestep_embedder.linear_2",),
    "txt_in.c_embedder.linear_1": ("context_embedder.time_text_embed.text_embedder.linear_1",),
    "txt_in.c_embedder.linear_2": ("context_embedder.time_text_embed.text_embedder.linear_2",),
    "txt_in.input_embedder": ("context_embedder.proj_in",),
    LAST_MODULATION: ("norm_out.linear",),
    "final_layer.linear": ("proj_out",),
}
"""Modules outside the blocks by their names in the original code, and those in diffusers."""
BLOCKS: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "transformer_blocks": (
        "double_blocks",
        {
            "img_mod.linear": ("norm1.linear",),
            "txt_mod.linear": ("norm1_context.linear",),
            "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
            "img_attn_q_norm": ("attn.norm_q",),
            "img_attn_k_norm": ("attn.norm_k",),
            "img_attn_proj": ("attn.to_out.0",),
            "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            "txt_attn_q_norm": ("attn.norm_added_q",),
            "txt_attn_k_norm": ("attn.norm_added_k",),
            "txt_attn_proj": ("attn.to_add_out",),
            "img_mlp.fc1": ("ff.net.0.proj",),
            "img_mlp.fc2": ("ff.net.2",),
            "txt_mlp.fc1": ("ff_context.net.0.proj",),
            "txt_mlp.fc2": ("ff_context.net.2",),
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
    "context_embedder.token_refiner.refiner_blocks": (
        "txt_in.individual_token_refiner.blocks",
        {
            "norm1": ("norm1",),
            "norm2": ("norm2",),
            "self_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
            "self_attn_proj": ("attn.to_out.0",),
            "mlp.fc1": ("ff.net.0.proj",),
            "mlp.fc2": ("ff.net.2",),
            "adaLN_modulation.1": ("norm_out.linear",),
        },
    ),
}
"""The blocks by their names in diffusers: that in the original code, and the modules inside, of
which several may be one there, in this order."""


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


def original_modules(modules: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the original code's modules, each with those of diffusers that it is made of.

    All of these are named, also those that are not among the given ones of diffusers.
    """
    found: dict[str, tuple[str, ...]] = {}
    for module in modules:
        outer, original_outer, inside = "", "", OUTSIDE
        for stem, (original_stem, names) in BLOCKS.items():
            if number := re.match(rf"{re.escape(stem)}\.(\d+)\.", module):
                outer, original_outer, inside = number[0], f"{original_stem}.{number[1]}.", names
        inner = module.removeprefix(outer)
        name, parts = next((name, parts) for name, parts in inside.items() if inner in parts)
        found[original_outer + name] = tuple(outer + part for part in parts)
    return found


def in_original_names(weights: TensorsByName) -> TensorsByName:
    """Rename and fuse the weights of a whole network: the inverse of `in_diffusers_names`."""
    modules = original_modules(name.rpartition(".")[0] for name in weights)
    original = {
        f"{name}.{kind}": torch.cat([weights[f"{part}.{kind}"] for part in parts])
        for name, parts in modules.items()
        for kind in ("weight", "bias")
        if f"{parts[0]}.{kind}" in weights
    }
    for kind in ("weight", "bias"):
        scale, shift = original[f"{LAST_MODULATION}.{kind}"].chunk(2)
        original[f"{LAST_MODULATION}.{kind}"] = torch.cat([shift, scale])
    return original


def lora_in_original_names(weights: TensorsByName, widths: Mapping[str, int]) -> TensorsByName:
    """Rename and fuse the matrices of a LoRA, `MODULE.lora_A.weight` and `MODULE.lora_B.weight`.

    The branch of a fused linear has the ranks of all its parts, each of which acts on its own rows
    of the output. `widths` are the output widths of the network's linears.

    Raises:
        ValueError: the last modulation has a branch, whose halves the original code exchanges.
    """
    modules = original_modules(name.rpartition(".lora_")[0] for name in weights)
    if LAST_MODULATION in modules:
        raise ValueError("a LoRA on norm_out.linear has no form in the original layout")
    original: TensorsByName = {}
    for name, parts in modules.items():
        downs = [weights.get(f"{part}.lora_A.weight") for part in parts]
        original[f"{name}.lora_A.weight"] = torch.cat([down for down in downs if down is not None])
        ups = (weights.get(f"{p}.lora_B.weight", torch.empty(widths[p], 0)) for p in parts)
        original[f"{name}.lora_B.weight"] = torch.block_diag(*ups)
    return original
