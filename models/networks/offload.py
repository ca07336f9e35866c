"""A network that is larger than its GPU: the layers come one by one from the host's memory."""

import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import nn

MARK = "_diffusers_hook"
"""Attribute of a module that diffusers watches."""


def offload_layers(transformer: HunyuanVideoTransformer3DModel, device: torch.device | str) -> None:
    """Compute on `device`, which holds one layer at a time; the weights stay in host memory."""
    transformer.enable_group_offload(torch.device(device), offload_type="leaf_level")


def is_offloaded(module: nn.Module) -> bool:
    """Tell whether every module that has weights of its own fetches them when it is called."""
    owners = (part for part in module.modules() if list(part.parameters(recurse=False)))
    return all(hasattr(part, MARK) for part in owners)
