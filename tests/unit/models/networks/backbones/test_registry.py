"""A network's family is found by its class, and what is of none is refused."""

import ast
import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import LTXVideoTransformer3DModel, UNet2DModel

from magicdistill.models.networks.backbones.hunyuan_video.network import HunyuanVideo
from magicdistill.models.networks.backbones.hunyuan_video.shapes import HunyuanVideoConfig
from magicdistill.models.networks.backbones.registry import (
    BACKBONES,
    backbone_of,
    family_in,
    family_of,
    lora_targets,
)
from magicdistill.models.networks.int8 import load_int8
from magicdistill.models.networks.transformer import build_transformer, load_transformer
from magicdistill.models.networks.weights import save_transformer
from tests.tiny import tiny_shapes

ROOT = Path(__file__).parents[5]
OTHER = "LTXVideoTransformer3DModel"
ROOMS = ("models", "data_pipeline", "platform", "jobs")
BACKBONES_ROOM = ROOT / "models" / "networks" / "backbones"
OUTSIDE = {
    "models/networks/autoencoder/hunyuan_video.py",
    "models/networks/autoencoder/hunyuan_video_network.py",
    "models/networks/autoencoder/registry.py",
    "models/networks/presets.py",  # their shapes
    "platform/evaluation/contestants.py",  # the pipelines of others
    "platform/export/model_card.py",  # the pipeline by whose text encoders prompts are embedded
}
"""Files outside the room of backbones that may name classes of HunyuanVideo."""


def code_outside() -> list[Path]:
    files = (file for folder in ROOMS for file in (ROOT / folder).rglob("*.py"))
    return [file for file in files if BACKBONES_ROOM not in file.parents]


def test_a_network_is_found_by_its_class() -> None:
    network = build_transformer(tiny_shapes())
    assert family_of(network) is HunyuanVideoConfig
    assert isinstance(backbone_of(network), HunyuanVideo)
    with torch.device("meta"), pytest.raises(ValueError, match="UNet2DModel is the network of no"):
        family_of(UNet2DModel())


def test_every_family_names_the_class_of_its_network() -> None:
    assert {family.class_name: family.backbone().network.__name__ for family in BACKBONES} == {
        family.class_name: family.class_name for family in BACKBONES
    }


@pytest.mark.parametrize("load", [load_transformer, load_int8, family_in])
def test_a_folder_of_another_network_is_refused_in_a_sentence(load, tmp_path: Path) -> None:
    if load is load_int8:
        pytest.importorskip("torchao", reason="the extra int8 is not installed")
    with torch.device("meta"):
        LTXVideoTransformer3DModel(num_layers=1).save_config(tmp_path)
    with pytest.raises(ValueError) as refused:
        load(tmp_path)
    supported = ", ".join(family.class_name for family in BACKBONES)
    assert str(refused.value) == (
        f"{tmp_path} holds weights of {OTHER}, which is of no registered backbone; give weights of "
        f"{supported}, or name in `plugins` the module that registers its backbone"
    )


def test_a_folder_without_a_class_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"in_channels": 4}))
    with pytest.raises(ValueError, match=r"config\.json names no class of a network"):
        load_transformer(tmp_path)


def test_weights_of_another_family_than_the_presets_are_refused(tmp_path: Path) -> None:
    class Other(HunyuanVideoConfig):
        pass

    save_transformer(build_transformer(tiny_shapes()), tmp_path)
    with pytest.raises(ValueError, match="and the preset's backbone is hunyuan-video: choose"):
        load_transformer(tmp_path, Other(**tiny_shapes().model_dump()))


def test_targets_of_a_lora_are_those_given_or_the_familys_own() -> None:
    class Other(HunyuanVideoConfig):
        lora_targets = ("other",)

    own = HunyuanVideoConfig.lora_targets
    assert lora_targets(Other, ()) == ("other",)
    assert lora_targets(Other, own) == ("other",)
    assert lora_targets(Other, ("mine",)) == ("mine",)
    assert lora_targets(HunyuanVideoConfig, own) == own


def test_no_class_of_a_family_is_named_outside_the_backbones() -> None:
    naming = {
        file.relative_to(ROOT).as_posix()
        for file in code_outside()
        if re.search(r"HunyuanVideo[A-Z]\w", file.read_text())
    }
    assert naming == OUTSIDE


def test_presets_alone_import_a_family() -> None:
    families = {
        f"backbones.{file.parent.name}.{file.stem}" for file in BACKBONES_ROOM.glob("*/*.py")
    }
    importers = {
        file.relative_to(ROOT).as_posix()
        for file in code_outside()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom)
        and any((node.module or "").endswith(family) for family in families)
    }
    assert importers == {"models/networks/presets.py"}
