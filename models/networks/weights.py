"""Writing trained networks as diffusers folders."""

from pathlib import Path

import torch
from diffusers import HunyuanVideoTransformer3DModel


def save_transformer(
    transformer: HunyuanVideoTransformer3DModel,
    directory: Path,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write the weights as safetensors in `dtype`, leaving the transformer as it is."""
    copy = HunyuanVideoTransformer3DModel.from_config(transformer.config)
    copy.load_state_dict(transformer.state_dict())
    copy.to(dtype).save_pretrained(directory)
