"""A network that is larger than its GPU: the layers come one by one from the host's memory."""

import torch
from diffusers import HunyuanVideoTransformer3DModel


def offload_layers(transformer: HunyuanVideoTransformer3DModel, device: torch.device | str) -> None:
    """Compute on `device`, which holds one layer at a time; the weights stay in host memory."""
    transformer.enable_group_offload(torch.device(device), offload_type="leaf_level")
