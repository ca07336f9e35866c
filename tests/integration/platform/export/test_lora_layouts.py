"""A LoRA is the same branch in every layout that it is written in."""

import re
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from magicdistill.models.networks.backbones.base import BackboneConfig
from magicdistill.models.networks.backbones.registry import family_of
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.lora import add_lora, write_lora
from magicdistill.models.networks.presets import PRESETS
from magicdistill.models.networks.transformer import VelocityModel, build_transformer
from magicdistill.models.objectives.config import SamplerConfig
from magicdistill.platform.export.diffusers_pipeline import (
    KOHYA_LORA,
    ORIGINAL_LORA,
    PIPELINE_LORA,
    stock_scheduler,
    write_original_lora,
    write_pipeline_lora,
)

RANK = 3
WAN, NANO = PRESETS["wan-tiny"].transformer, PRESETS["nano"].transformer
FAMILIES: dict[str, BackboneConfig] = {
    "wan22": WAN.model_copy(update={"num_layers": 2}),
    "wan21": WAN.model_copy(update={"num_layers": 2, "image_dim": 16}),
    # without single-stream blocks: diffusers' converter knows their width of 13B alone
    "hunyuan": NANO.model_copy(update={"num_layers": 2, "num_single_layers": 0}),
}
HUNYUAN_MODULE = re.compile(
    r"lora_unet_double_blocks_(\d+)_((?:img|txt)_(?:attn_qkv|attn_proj|mlp_fc[12]))"
)


def with_branch(shapes: BackboneConfig, folder: Path) -> Any:
    """Return a network with a random branch, which is written to a folder in all layouts."""
    torch.manual_seed(0)
    network: Any = build_transformer(shapes)
    add_lora(network, RANK, type(shapes).lora_targets)
    branch = {name: p for name, p in network.named_parameters() if "lora_" in name}
    with torch.no_grad():
        for parameter in branch.values():
            parameter.copy_(0.2 * torch.randn_like(parameter))
    write_lora(network, {name: p.detach() for name, p in branch.items()}, folder, base=None)
    write_pipeline_lora(folder)
    write_original_lora(folder, network)
    return network


def with_loaded(shapes: BackboneConfig, lora: Any, **file: str) -> Any:
    """Return the same network with what the stock pipeline loads."""
    torch.manual_seed(0)
    network: Any = build_transformer(shapes)
    pipeline: Any = getattr(diffusers, str(family_of(network).pipeline_of(network.config)))
    parts: dict[str, Any] = dict.fromkeys(signature(pipeline).parameters)
    parts |= {"transformer": network, "scheduler": stock_scheduler(SamplerConfig())}
    for option in ("boundary_ratio", "expand_timesteps"):
        parts.pop(option, None)
    pipeline(**parts).load_lora_weights(lora, **file)
    return network


@torch.no_grad()
def velocity(network: Any) -> Tensor:
    x = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    null = Conditions.null(x[:, :, :1], num_tokens=4, text_dim=64, pooled_dim=64)
    return VelocityModel(network)(x, torch.tensor([0.7]), null)


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_loads_the_original_names(family: str, tmp_path: Path) -> None:
    expected = velocity(with_branch(FAMILIES[family], tmp_path))
    plain = velocity(build_transformer(FAMILIES[family]))
    assert (plain - expected).abs().max() > 0.01
    for file in (ORIGINAL_LORA, PIPELINE_LORA):
        loaded = with_loaded(FAMILIES[family], tmp_path, weight_name=file)
        torch.testing.assert_close(velocity(loaded), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["wan22", "wan21"])
def test_diffusers_loads_the_kohya_names_of_wan(family: str, tmp_path: Path) -> None:
    expected = velocity(with_branch(FAMILIES[family], tmp_path))
    assert "lora_unet_blocks_1_cross_attn_k.alpha" in load_file(tmp_path / KOHYA_LORA)
    loaded = with_loaded(FAMILIES[family], tmp_path, weight_name=KOHYA_LORA)
    torch.testing.assert_close(velocity(loaded), expected, atol=1e-5, rtol=0)


def test_the_kohya_names_of_hunyuan_video_are_the_original_ones_with_underscores(
    tmp_path: Path,
) -> None:
    """diffusers reads no such file of this family: here the names are turned back by hand."""
    expected = velocity(with_branch(FAMILIES["hunyuan"], tmp_path))
    spelt = load_file(tmp_path / KOHYA_LORA)
    original: dict[str, Tensor] = {}
    for name in [name.removesuffix(".alpha") for name in spelt if name.endswith(".alpha")]:
        found = HUNYUAN_MODULE.fullmatch(name)
        assert found, name
        number, inside = found.groups()
        module = f"double_blocks.{number}.{inside.replace('mlp_', 'mlp.')}"
        down, up = (spelt.pop(f"{name}.lora_{side}.weight") for side in ("down", "up"))
        assert len(down) == (3 * RANK if "qkv" in module else RANK)
        original[f"{module}.lora_A.weight"] = down * (spelt.pop(f"{name}.alpha") / len(down))
        original[f"{module}.lora_B.weight"] = up
    assert not spelt and len(original) == 2 * 2 * 8
    loaded = with_loaded(FAMILIES["hunyuan"], original)
    torch.testing.assert_close(velocity(loaded), expected, atol=1e-5, rtol=0)
