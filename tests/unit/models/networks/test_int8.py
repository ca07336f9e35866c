"""Eight-bit weights: their size, their file, and how near the network stays."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from magicdistill.models.locations import PROJECT, is_int8
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.int8 import (
    load_int8,
    weight_bytes,
    write_int8,
)
from magicdistill.models.networks.transformer import VelocityModel, load_transformer

STUDENT = PROJECT / "assets" / "portrait-tiny" / "student-4step"


def test_bytes_are_counted_in_the_dtype_of_the_weights() -> None:
    module = nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4)).to(torch.bfloat16)
    assert weight_bytes(module) == 2 * (8 * 4 + 4 + 4 + 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torchao", reason="the extra int8 is not installed")
    path = tmp_path_factory.mktemp("int8")
    write_int8(STUDENT, path)
    return path


def test_a_quantised_folder_is_half_as_large_and_loads_as_it_was(folder: Path) -> None:
    full = VelocityModel(load_transformer(STUDENT)).to(torch.bfloat16)
    quantised, loaded = load_int8(STUDENT), load_int8(folder)
    assert not is_int8(STUDENT) and is_int8(folder)
    assert weight_bytes(quantised) == weight_bytes(loaded)
    assert weight_bytes(loaded) < 0.53 * weight_bytes(full)
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert weight_bytes(loaded) < stored < 1.05 * weight_bytes(loaded)


@torch.no_grad()
def test_a_quantised_network_stays_near(folder: Path) -> None:
    torch.manual_seed(0)
    x, sigma = torch.randn(1, 16, 5, 8, 8), torch.tensor([0.8])
    null = Conditions.null(x[:, :, :1], num_tokens=4, text_dim=64, pooled_dim=64)
    full, int8 = (
        VelocityModel(network)(x, sigma, null)
        for network in (load_transformer(STUDENT), load_int8(folder))
    )
    assert not torch.equal(full, int8)
    assert (full - int8).square().mean() < 1e-3 * full.square().mean()


@pytest.mark.skipif(find_spec("torchao") is not None, reason="nothing is missing")
def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"magicdistill\[int8\]"):
        write_int8(STUDENT, tmp_path / "int8")
    assert not (tmp_path / "int8").exists()
