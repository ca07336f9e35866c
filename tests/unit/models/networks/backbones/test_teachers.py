"""The table of published teachers: which weights are of which kind."""

from typing import Any

import pytest
import torch
from diffusers import (
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoTransformer3DModel,
    ModelMixin,
    WanTransformer3DModel,
)

from magicdistill.models.networks.backbones.hunyuan_video.layouts import LAYOUTS
from magicdistill.models.networks.backbones.registry import BACKBONES
from magicdistill.models.networks.backbones.teachers import TEACHERS, find_teacher
from tests.tiny import tiny_shapes

SMALL, LARGE = 832 * 480, 1280 * 720


def config_of(network: type[ModelMixin], **arguments: Any) -> dict[str, Any]:
    """Return what diffusers writes into config.json."""
    with torch.device("meta"):
        return dict(network(**arguments).config) | {"_class_name": network.__name__}


def hunyuan(channels: int, kind: str | None, *, embeds: bool) -> dict[str, Any]:
    changes = {"in_channels": channels, "image_condition_type": kind, "guidance_embeds": embeds}
    arguments = tiny_shapes(latent_channels=16).arguments() | changes
    return config_of(HunyuanVideoTransformer3DModel, **arguments)


HUNYUAN = {
    "HunyuanVideo T2V": hunyuan(16, None, embeds=False),
    "HunyuanVideo T2V-cfgdistill": hunyuan(16, None, embeds=True),
    "HunyuanVideo-I2V latent_concat": hunyuan(33, "latent_concat", embeds=False),
    "HunyuanVideo-I2V token_replace": hunyuan(16, "token_replace", embeds=True),
    "SkyReels-V1 I2V": hunyuan(32, None, embeds=True),
}


@pytest.mark.parametrize("name", HUNYUAN)
def test_a_hunyuan_teacher_is_told_by_its_configuration(name: str) -> None:
    kind = find_teacher(HUNYUAN[name])
    assert kind is not None and kind.name == name


def test_every_layout_and_every_registered_family_has_a_teacher() -> None:
    families = {family.class_name for family in BACKBONES}
    assert families <= {kind.network for kind in TEACHERS}
    published = {kind.layout for kind in TEACHERS if kind.is_published}
    assert published - {None} == set(LAYOUTS)


def test_a_hunyuan_15_or_wan_teacher_is_told_by_its_configuration_and_the_frames_size() -> None:
    few = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 12}
    wan = {"in_channels": 36, "ffn_dim": 8}
    cases: list[tuple[dict[str, Any], int, str | None]] = [
        (config_of(WanTransformer3DModel, **few, **wan), LARGE, "Wan2.2-I2V-A14B"),
    ]
    clip = config_of(WanTransformer3DModel, **few, **wan, image_dim=12)
    cases += [(clip, SMALL, "Wan2.1-I2V-14B-480P"), (clip, LARGE, "Wan2.1-I2V-14B-720P")]
    small = {"num_layers": 1, "num_refiner_layers": 1, "num_attention_heads": 2}
    other = config_of(HunyuanVideo15Transformer3DModel, **small)
    cases += [
        (other, SMALL, "HunyuanVideo-1.5 I2V 480p"),
        (other, LARGE, "HunyuanVideo-1.5 I2V 720p"),
    ]
    found = [find_teacher(config, pixels) for config, pixels, _ in cases]
    assert [kind and kind.name for kind in found] == [name for _, _, name in cases]
    with pytest.raises(ValueError, match="16 input channels: the image-to-video networks of Wan"):
        find_teacher(config_of(WanTransformer3DModel, **few, ffn_dim=8), LARGE)


def test_every_teacher_says_where_its_numbers_are_from() -> None:
    assert len({kind.name for kind in TEACHERS}) == len(TEACHERS)
    assert all(kind.source for kind in TEACHERS)
