"""The families of transformers by name, and that of a network or of a folder of weights."""

import json
from pathlib import Path
from typing import Annotated, Any

from magicdistill.models.locations import CONFIG
from magicdistill.models.networks.backbones.base import Backbone, BackboneConfig
from magicdistill.models.networks.backbones.hunyuan_video.shapes import HunyuanVideoConfig
from magicdistill.models.networks.backbones.hunyuan_video15.shapes import HunyuanVideo15Config
from magicdistill.models.networks.backbones.wan.shapes import WanConfig
from magicdistill.models.registry import Registry

BACKBONES = Registry(
    "backbone", BackboneConfig, HunyuanVideoConfig, HunyuanVideo15Config, WanConfig
)

AnyBackbone = Annotated[BackboneConfig, BACKBONES]
"""The type of a preset's field `transformer`."""


def find_family(class_name: str | None) -> type[BackboneConfig] | None:
    """Return the family whose network's class has this name, None where there is none."""
    return next((family for family in BACKBONES if family.class_name == class_name), None)


def family_in(folder: Path) -> type[BackboneConfig]:
    """Return the family of the network in a folder of diffusers.

    Raises:
        ValueError: it is of none; the message names its class and those that can be loaded.
    """
    network = json.loads((folder / CONFIG).read_text()).get("_class_name")
    if network is None:
        raise ValueError(f"{folder / CONFIG} names no class of a network: give a diffusers folder")
    if (family := find_family(network)) is None:
        supported = ", ".join(family.class_name for family in BACKBONES)
        raise ValueError(
            f"{folder} holds weights of {network}, which is of no registered backbone; give "
            f"weights of {supported}, or name in `plugins` the module that registers its backbone"
        )
    return family


def demand_family(folder: Path, shapes: BackboneConfig) -> None:
    """Raise ValueError where a folder of diffusers has no network of the preset's family."""
    if (family := family_in(folder)) is not type(shapes):
        raise ValueError(
            f"{folder} holds weights of {family.class_name}, and the preset's backbone is "
            f"{shapes.kind}: choose a preset with the backbone of the weights, or other weights"
        )


def demand_shapes(folder: Path, shapes: BackboneConfig, preset: str) -> dict[str, Any]:
    """Return the configuration of a folder of diffusers.

    Raises ValueError as `demand_family` does, and where the network has other sizes.
    """
    demand_family(folder, shapes)
    config = json.loads((folder / CONFIG).read_text())
    if differences := shapes.differences(config):
        listed = ", ".join(
            f"{name} {theirs} instead of {own}" for name, (own, theirs) in differences.items()
        )
        raise ValueError(
            f"{folder} has {listed}, unlike model.preset {preset}; choose the preset of these "
            "weights, or other weights"
        )
    return config


def demand_layout(folder: Path, said: str | None) -> None:
    """Raise ValueError where the input of a folder's network is of no known layout, or of another
    one than was said.
    """
    family = family_in(folder)
    try:
        found = family.image_layout(json.loads((folder / CONFIG).read_text()))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    if said not in (None, found):
        raise ValueError(
            f"{folder / CONFIG} says {found or 'text-to-video'}: leave model.teacher_layout out"
        )


def family_of(transformer: Any) -> type[BackboneConfig]:
    """Return the family of a network; raises ValueError where its class is of none."""
    name = type(transformer).__name__
    if (family := find_family(name)) is None:
        raise ValueError(f"{name} is the network of no registered backbone")
    return family


def backbone_of(transformer: Any) -> Backbone:
    """Return what the family of a network answers about it; raises as `family_of` does."""
    return family_of(transformer).backbone()(transformer)


def lora_targets(family: type[BackboneConfig], given: tuple[str, ...]) -> tuple[str, ...]:
    """Return the patterns of a LoRA's linears: those given, or the family's own.

    The defaults of any family stand for the family's own: a recipe that has been resolved for one
    preset may be given another.
    """
    defaults = {other.lora_targets for other in BACKBONES}
    return family.lora_targets if not given or given in defaults else given
