"""Reading transformer checkpoints of every layout, file by file, in diffusers' names."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from magicdistill.models.locations import CONFIG
from magicdistill.models.networks.backbones.backbone import Arguments, Backbone, TensorsByName
from magicdistill.models.networks.backbones.base import BackboneConfig
from magicdistill.models.networks.backbones.registry import (
    demand_family,
    demand_layout,
    family_in,
)
from magicdistill.models.networks.placement import WHOLE, Placement

INDEX = "diffusion_pytorch_model.safetensors.index.json"
WRAPPER = "transformer."
"""Prefix of the names in our own checkpoints, where a VelocityModel holds the transformer."""


def checkpoint_parts(path: Path, backbone: type[Backbone]) -> Iterator[TensorsByName]:
    """Yield a checkpoint file by file, in the names of the backbone's network.

    `path` is a diffusers folder, sharded or not, or one file: a published one that the backbone
    knows, or a bare state dict.

    Raises:
        FileNotFoundError: a file is missing; the message names all that are.
    """
    parts = (_without_wrapper(_read(file)) for file in _files(path))
    return map(backbone.in_diffusers_names, parts)


def checkpoint_config(
    path: Path, shapes: BackboneConfig | None, layout: str | None = None
) -> tuple[type[Backbone], Arguments]:
    """Return the backbone of a checkpoint, and the arguments of its network.

    A folder has both in its config.json. A file is of the family of `shapes`, which may read more
    from its tensors than the shapes tell; `layout` says of its input what they leave open.

    Raises:
        ValueError: a file comes without shapes, or a folder has a network of no registered family
            or of another one than the shapes, or the layout of the input is open, unknown or
            another one than was said.
    """
    if path.is_dir():
        if shapes is not None:
            demand_family(path, shapes)
        demand_layout(path, layout)
        return family_in(path).backbone(), public(json.loads((path / CONFIG).read_text()))
    if shapes is None:
        raise ValueError(f"{path} is a file without a configuration: give the preset's shapes")
    backbone = shapes.backbone()
    sizes = sizes_in(path, backbone)
    try:
        return backbone, backbone.arguments_of_file(shapes.arguments(), sizes, layout)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def sizes_in(file: Path, backbone: type[Backbone]) -> dict[str, torch.Size]:
    """Return the sizes of a file's tensors by their names in the backbone's network.

    Raises ValueError for a file that holds no tensors by name.
    """
    try:
        part = backbone.in_diffusers_names(_without_wrapper(_read_outline(file)))
    except Exception as error:  # whatever torch, safetensors or a renaming raises
        raise ValueError(
            f"{file} cannot be read as weights ({type(error).__name__}); give a diffusers "
            "folder, or a file of tensors by name"
        ) from None
    return {name: tensor.shape for name, tensor in part.items()}


def demand_file(
    file: Path, shapes: BackboneConfig, preset: str, layout: str | None
) -> dict[str, Any]:
    """Return the arguments of the network in a file, of which names and sizes alone are read.

    Raises:
        ValueError: its tensors are not those of the preset's network, or as `checkpoint_config`.
    """
    backbone, arguments = checkpoint_config(file, shapes, layout)
    with torch.device("meta"):
        network = backbone.network(**arguments)
    own = {name: parameter.shape for name, parameter in network.named_parameters()}
    found = sizes_in(file, backbone)
    if others := [name for name in own | found if own.get(name) != found.get(name)]:
        raise ValueError(
            f"{file} has {len(others)} tensors otherwise than model.preset {preset}, such as "
            f"{others[0]}; choose the preset of these weights, or other weights"
        )
    return arguments


def public(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a diffusers configuration without its private entries on class and version."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


@torch.no_grad()
def fill(module: nn.Module, parts: Iterable[TensorsByName], placement: Placement = WHOLE) -> None:
    """Copy a checkpoint into a module, one parameter at a time.

    Every rank calls it with the same parts.

    Raises:
        ValueError: keys are missing, unknown or of another shape; the message lists them all.
    """
    parameters = dict(module.named_parameters())
    missing, problems = set(parameters), []
    for part in parts:
        for name, tensor in part.items():
            if name not in parameters:
                problems.append(f"unknown {name}")
                continue
            missing.discard(name)
            with placement.gathered([parameters[name]]) as writes:
                shape = tuple(parameters[name].shape)
                if shape != tuple(tensor.shape):
                    problems.append(f"{name} has {tuple(tensor.shape)}, the network {shape}")
                elif writes:
                    parameters[name].copy_(tensor)
    problems += [f"missing {name}" for name in sorted(missing)]
    if problems:
        listing = "\n  ".join(problems)
        raise ValueError(f"{len(problems)} keys of the checkpoint do not fit:\n  {listing}")


@torch.no_grad()
def copy_parameters(source: nn.Module, target: nn.Module, placement: Placement = WHOLE) -> None:
    """Copy the parameters of a module into another of the same names, one at a time."""
    parameters = dict(source.named_parameters())
    for name, parameter in target.named_parameters():
        with placement.gathered([parameters[name], parameter]) as writes:
            if writes:
                parameter.copy_(parameters[name])


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = [path / SAFETENSORS_WEIGHTS_NAME]
    if (path / INDEX).is_file():
        weight_map: dict[str, str] = json.loads((path / INDEX).read_text())["weight_map"]
        files = [path / name for name in sorted(set(weight_map.values()))]
    elif (path / WEIGHTS_NAME).is_file():
        files = [path / WEIGHTS_NAME]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise FileNotFoundError(f"{path} lacks {', '.join(absent)}")
    return files


def _without_wrapper(part: TensorsByName) -> TensorsByName:
    if part and all(name.startswith(WRAPPER) for name in part):
        return {name.removeprefix(WRAPPER): tensor for name, tensor in part.items()}
    return part


def _read(file: Path) -> TensorsByName:
    if file.suffix == ".safetensors":
        return load_file(file)
    content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    return dict(content.get("module", content))


def _read_outline(file: Path) -> TensorsByName:
    """Return tensors without storage."""
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            return {
                name: torch.empty(opened.get_slice(name).get_shape(), device="meta")
                for name in opened.keys()  # noqa: SIM118  it is no mapping
            }
    content = torch.load(file, map_location="meta", mmap=True, weights_only=True)
    return dict(content.get("module", content))
