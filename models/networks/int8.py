"""Weights as eight-bit integers: half the memory of bfloat16, computed in bfloat16.

Every linear layer has int8 weights and one scale for each output; all else stays bfloat16. The
optional package torchao quantises; diffusers and transformers read and write the folders.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin, TorchAoConfig
from torch import Tensor, nn

from magicdistill.models.locations import is_int8
from magicdistill.models.networks.backbones.registry import family_in

SCHEME = {
    "quant_method": "torchao",
    "quant_type": {
        "default": {
            "_type": "Int8WeightOnlyConfig",
            "_version": 2,
            "_data": {"set_inductor_config": False},
        }
    },
}


def demand_torchao() -> None:
    """Raise ModuleNotFoundError, naming the package to install, if torchao is missing."""
    if find_spec("torchao") is None:
        raise ModuleNotFoundError("int8 weights need torchao: pip install 'magicdistill[int8]'")


def weight_bytes(module: nn.Module) -> int:
    """Return the size of a module's parameters in bytes, quantised or not."""
    return sum(part.nbytes for p in module.parameters() for part in _parts(p.detach()))


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the plain tensors that a quantised one is made of, or a plain one itself."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
    else:
        yield from (getattr(tensor, name) for name in flatten()[0])


def encoder_arguments(folder: Path) -> dict[str, Any]:
    """Return arguments of transformers' `from_pretrained` that load an encoder's folder as int8.

    Raises ModuleNotFoundError without torchao.
    """
    from transformers import TorchAoConfig as EncoderConfig

    demand_torchao()
    scheme = {} if is_int8(folder) else {"quantization_config": EncoderConfig.from_dict(SCHEME)}
    return {"dtype": torch.bfloat16, **scheme}


def load_int8(folder: Path) -> ModelMixin:
    """Load a transformer's folder as int8; one that is not quantised yet is, tensor by tensor.

    Raises ModuleNotFoundError without torchao, ValueError for a network of no registered backbone.
    """
    demand_torchao()
    scheme = {} if is_int8(folder) else {"quantization_config": TorchAoConfig.from_dict(SCHEME)}
    network = family_in(folder).backbone().network
    return network.from_pretrained(folder, torch_dtype=torch.bfloat16, **scheme)


def write_int8(source: Path, folder: Path) -> None:
    """Quantise a transformer's folder into another one, which plain diffusers reads."""
    load_int8(source).save_pretrained(folder)
