"""Published files of Wan: other names, and networks that do not take a first frame so."""

import re
from collections.abc import Mapping
from typing import Any

from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

from magicdistill.models.networks.backbones.backbone import TensorsByName

PATCH_EMBEDDING = "patch_embedding.weight"
ORIGINAL = ("self_attn.", "cross_attn.", "head.head.", "text_embedding.", "time_embedding.")
"""Parts of names that the original files have and diffusers' have not."""
MERGED_FILE = "model.diffusion_model."
"""Prefix of the names in files of whole pipelines, as ComfyUI has them."""
IN_BLOCKS = {
    "attn1": "self_attn",
    "attn2": "cross_attn",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "add_k_proj": "k_img",
    "add_v_proj": "v_img",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
"""Parts of the names of a block's linears in diffusers, and those in the original code."""
LINEAR = re.compile(rf"(?<=\.)({'|'.join(map(re.escape, IN_BLOCKS))})(?=\.)")


def in_diffusers_names(part: TensorsByName) -> TensorsByName:
    """Rename the tensors of the original Wan file."""
    if any(name.startswith(MERGED_FILE) or old in name for name in part for old in ORIGINAL):
        return convert_wan_transformer_to_diffusers(dict(part))
    return part


def demand_image_to_video(config: Mapping[str, Any]) -> None:
    """Raise ValueError where the input is not [noisy C | mask 4 | image prior C]."""
    wanted = 2 * config["out_channels"] + 4
    if config["in_channels"] != wanted:
        raise ValueError(
            f"{config['in_channels']} input channels: the image-to-video networks of Wan 2.1 and "
            f"Wan 2.2 A14B have {wanted}; give one of those"
        )


def lora_in_original_names(weights: TensorsByName) -> TensorsByName:
    """Rename the matrices of a LoRA on linears of blocks, `MODULE.lora_A.weight` and `lora_B`.

    Raises:
        ValueError: another module has a branch.
    """
    if other := sorted(name for name in weights if not name.startswith("blocks.")):
        raise ValueError(f"a LoRA on {other[0]} has no form in the original layout")
    return {LINEAR.sub(lambda part: IN_BLOCKS[part[1]], n): t for n, t in weights.items()}
