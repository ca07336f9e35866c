"""Reading transformer checkpoints of every layout, file by file, in diffusers' names."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_hunyuan_video_transformer_to_diffusers
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors.torch import load_file
from torch import Tensor, nn

from magicdistill.models.locations import CONFIG
from magicdistill.models.networks.config import TransformerConfig
from magicdistill.models.networks.placement import WHOLE, Placement

TensorsByName = dict[str, Tensor]
"""Tensors by name. They are memory-mapped: a 26 GB file takes memory only for what is copied."""

INDEX = "diffusion_pytorch_model.safetensors.index.json"
PATCH_EMBEDDING = "x_embedder.proj.weight"
ORIGINAL_PATCH_EMBEDDING = "img_in.proj.weight"
WRAPPER = "transformer."
"""Prefix of the names in our own checkpoints, where a VelocityModel holds the transformer."""


def checkpoint_parts(path: Path) -> Iterator[TensorsByName]:
    """Yield a checkpoint file by file, in the names of diffusers' transformer.

    `path` is a diffusers folder, sharded or not, or one file: the original HunyuanVideo
    checkpoint, or a bare state dict.

    Raises:
        FileNotFoundError: a file is missing; the message names all that are.
    """
    return (in_diffusers_names(_read(file)) for file in _files(path))


def in_diffusers_names(part: TensorsByName) -> TensorsByName:
    """Rename the tensors of the original HunyuanVideo file, or of one of our checkpoints."""
    if part and all(name.startswith(WRAPPER) for name in part):
        return {name.removeprefix(WRAPPER): tensor for name, tensor in part.items()}
    if ORIGINAL_PATCH_EMBEDDING in part:
        return convert_hunyuan_video_transformer_to_diffusers(part)
    return part


def checkpoint_config(path: Path, shapes: TransformerConfig | None) -> dict[str, Any]:
    """Return the arguments of diffusers' transformer for a checkpoint.

    A folder has them in its config.json. For a file they are `shapes`, but the tensors tell the
    number of input channels and whether guidance is embedded. Raises ValueError where a file
    comes without shapes.
    """
    if path.is_dir():
        return public(json.loads((path / CONFIG).read_text()))
    if shapes is None:
        raise ValueError(f"{path} is a file without a configuration: give the preset's shapes")
    found = {name: tensor.shape for part in checkpoint_parts(path) for name, tensor in part.items()}
    embedding = found.get(PATCH_EMBEDDING)
    config = transformer_arguments(shapes)
    config["guidance_embeds"] = any("guidance_embedder" in name for name in found)
    if embedding is not None and embedding[1] == shapes.latent_channels:
        config |= {"in_channels": shapes.latent_channels, "image_condition_type": None}
    return config


def public(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a diffusers configuration without its private entries on class and version."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def transformer_arguments(shapes: TransformerConfig) -> dict[str, Any]:
    """Return the image-to-video layout: the input is [noisy C | image prior C | mask 1]."""
    channels = shapes.latent_channels
    return {
        "in_channels": 2 * channels + 1,
        "out_channels": channels,
        "image_condition_type": "latent_concat",
        **shapes.model_dump(exclude={"latent_channels", "num_text_tokens"}),
    }


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


def _read(file: Path) -> TensorsByName:
    if file.suffix == ".safetensors":
        return load_file(file)
    content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    return dict(content.get("module", content))
