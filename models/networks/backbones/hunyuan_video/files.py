"""Published files of HunyuanVideo: other names, and fewer input channels."""

from collections.abc import Iterable, Iterator

import torch
from diffusers.loaders.single_file_utils import convert_hunyuan_video_transformer_to_diffusers

from magicdistill.models.networks.backbones.backbone import TensorsByName

PATCH_EMBEDDING = "x_embedder.proj.weight"
ORIGINAL_PATCH_EMBEDDING = "img_in.proj.weight"


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
