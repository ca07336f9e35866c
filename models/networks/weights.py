"""Finding and writing networks as diffusers folders."""

from pathlib import Path

import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file

import magicdistill

PROJECT = Path(magicdistill.__file__).resolve().parents[1]


def find_weights(directory: str, field: str) -> Path:
    """Return a folder of weights; a relative one starts here or at the project's root.

    Raises FileNotFoundError naming the recipe's field.
    """
    path = Path(directory).expanduser()
    for candidate in (path, PROJECT / path):
        if (candidate / "config.json").is_file():
            return candidate.absolute()
    raise FileNotFoundError(f"{field}: no weights (config.json) in {path}, here or in {PROJECT}")


def save_transformer(
    transformer: HunyuanVideoTransformer3DModel,
    directory: Path,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write the weights as safetensors in `dtype`, leaving the transformer as it is."""
    weights = {name: tensor.to(dtype) for name, tensor in transformer.state_dict().items()}
    directory.mkdir(parents=True, exist_ok=True)
    transformer.save_config(directory)
    save_file(weights, directory / SAFETENSORS_WEIGHTS_NAME)
