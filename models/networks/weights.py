"""Write networks as diffusers folders."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from diffusers import ModelMixin
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor

from magicdistill.models.locations import CONFIG
from magicdistill.models.networks.lora import merged
from magicdistill.models.networks.placement import WHOLE, Placement
from magicdistill.models.networks.state_dicts import INDEX, public
from magicdistill.models.tensor_files import save_file

MAX_FILE_BYTES = 5 * 2**30


def save_transformer(
    transformer: ModelMixin,
    directory: Path,
    dtype: torch.dtype = torch.float16,
    *,
    placement: Placement = WHOLE,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Write a diffusers folder in `dtype`, leaving the transformer as it is.

    A LoRA is merged into the weights. Every rank calls it; one rank of a sharded placement writes,
    and holds one file at a time.
    """
    parameters = dict(transformer.named_parameters())

    def read(name: str) -> Tensor | None:
        with placement.gathered([parameters[name]]) as writes:
            return parameters[name].detach().to("cpu", torch.float32, copy=True) if writes else None

    whole = merged(transformer, read)

    def read_rounded(name: str) -> Tensor | None:
        tensor = whole(name)
        return None if tensor is None else tensor.to(dtype)

    write_transformer(transformer, directory, read_rounded, dtype, max_file_bytes=max_file_bytes)


def write_transformer(
    transformer: ModelMixin,
    directory: Path,
    read: Callable[[str], Tensor | None],
    dtype: torch.dtype,
    *,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Write a diffusers folder, one file at a time, of what `read` returns.

    `transformer` gives names, sizes and settings, and may be without storage. `read` returns a
    whole parameter in `dtype` by its name, and None on a rank that does not write. config.json
    comes last: a folder without it is not complete.
    """
    shapes = plain_shapes(transformer)
    sizes = {name: shape.numel() * dtype.itemsize for name, shape in shapes.items()}
    plan = _files_of(sizes, max_file_bytes)
    writes = False
    for file, names in plan.items():
        tensors: dict[str, Tensor] = {}  # also frees the tensors of the file before
        for name in names:
            if (tensor := read(name)) is not None:
                tensors[name] = tensor
        if tensors:
            if not writes:
                _clear(directory)
            writes = True
            save_file(tensors, directory / file)
    if writes:
        if len(plan) > 1:
            weight_map = {name: file for file, names in plan.items() for name in names}
            index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
            (directory / INDEX).write_text(json.dumps(index, indent=2))
        transformer.save_config(directory)


def plain_shapes(transformer: ModelMixin) -> dict[str, torch.Size]:
    """Return the shapes of the plain network's whole parameters, also if this rank has only shards
    or the network has a LoRA."""
    with torch.device("meta"):
        whole = type(transformer)(**public(transformer.config))
    return {name: parameter.shape for name, parameter in whole.named_parameters()}


def _files_of(sizes: Mapping[str, int], max_bytes: int) -> dict[str, list[str]]:
    """Divide names, in order, over files of at most `max_bytes`; a larger tensor gets its own."""
    groups: list[list[str]] = [[]]
    room = max_bytes
    for name, size in sizes.items():
        if groups[-1] and size > room:
            groups.append([])
            room = max_bytes
        groups[-1].append(name)
        room -= size
    if len(groups) == 1:
        return {SAFETENSORS_WEIGHTS_NAME: groups[0]}
    stem = SAFETENSORS_WEIGHTS_NAME.removesuffix(".safetensors")
    return {
        f"{stem}-{number:05d}-of-{len(groups):05d}.safetensors": names
        for number, names in enumerate(groups, start=1)
    }


def _clear(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for old in (directory / CONFIG, directory / INDEX, *directory.glob("*.safetensors")):
        old.unlink(missing_ok=True)
