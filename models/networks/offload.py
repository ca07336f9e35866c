"""Run a network larger than the GPU: its layers are copied from host memory one by one."""

import torch
from diffusers import ModelMixin


def offload_layers(transformer: ModelMixin, device: torch.device | str) -> None:
    """Compute on `device`, which holds one layer at a time; the other weights stay on the host."""
    transformer.enable_group_offload(torch.device(device), offload_type="leaf_level")
