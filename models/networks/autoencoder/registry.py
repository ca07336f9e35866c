"""The families of VAEs by name, and that of a network or of a folder of weights."""

import json
from pathlib import Path
from typing import Annotated, Any

from magicdistill.models.networks.autoencoder.base import VaeConfig
from magicdistill.models.networks.autoencoder.hunyuan_video import HunyuanVideoVaeConfig
from magicdistill.models.networks.autoencoder.hunyuan_video15 import HunyuanVideo15VaeConfig
from magicdistill.models.networks.autoencoder.wan import WanVaeConfig
from magicdistill.models.registry import Registry

VAES = Registry("VAE", VaeConfig, HunyuanVideoVaeConfig, HunyuanVideo15VaeConfig, WanVaeConfig)

AnyVae = Annotated[VaeConfig, VAES]
"""The type of a preset's field `vae`."""


def vae_named(class_name: str | None) -> type[VaeConfig]:
    """Return the family whose network's class has this name.

    Raises:
        ValueError: there is none; the message names those that there are.
    """
    for family in VAES:
        if family.class_name == class_name:
            return family
    raise ValueError(
        f"{class_name} is the VAE of no registered family; give one of "
        f"{', '.join(family.class_name for family in VAES)}"
    )


def vae_of(autoencoder: Any) -> type[VaeConfig]:
    """Return the family of a network; raises ValueError where its class is of none."""
    return vae_named(type(autoencoder).__name__)


def demand_vae(config: Path, shapes: VaeConfig) -> None:
    """Raise ValueError where a configuration of diffusers is not of the preset's family, or has
    another number of latent channels."""
    values = json.loads(config.read_text())
    family = vae_named(values.get("_class_name"))
    if family is not type(shapes):
        raise ValueError(
            f"{config.parent} is a {family.class_name}, and the preset's networks take the latents "
            f"of {shapes.class_name}: give such a VAE, or choose a preset of this one"
        )
    channels = values.get(family.channels_key, shapes.latent_channels)
    if channels != shapes.latent_channels:
        raise ValueError(
            f"{config.parent} has {channels} latent channels, and the preset "
            f"{shapes.latent_channels}: give the VAE of the preset's networks"
        )
