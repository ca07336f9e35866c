"""Files of tensors have the permissions of any new file."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from magicdistill.models.networks.autoencoder.hunyuan_video import HunyuanVideoVaeConfig
from magicdistill.models.networks.autoencoder.vae import VideoVae, build_autoencoder
from magicdistill.models.tensor_files import save_file

SMALL = HunyuanVideoVaeConfig(
    block_out_channels=(8, 16, 32, 48), layers_per_block=1, norm_num_groups=4
)


def modes(folder: Path) -> set[int]:
    return {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_the_umask_decides_who_may_read(umask: int, tmp_path: Path):
    tensors: dict[str, Tensor] = {"a": torch.arange(3.0)}
    before = os.umask(umask)
    try:
        save_file(tensors, tmp_path / "a.safetensors", {"format": "pt"})
        VideoVae(build_autoencoder(SMALL)).save(tmp_path / "vae")
    finally:
        os.umask(before)
    assert modes(tmp_path) == {0o666 & ~umask}
    assert torch.equal(load_file(tmp_path / "a.safetensors")["a"], tensors["a"])


def test_no_file_is_written_past_it() -> None:
    root = Path(__file__).parents[3]
    rooms = ("jobs", "platform", "data_pipeline", "models")
    files = [file for room in rooms for file in (root / room).rglob("*.py")]
    past = [file.name for file in files if "safetensors.torch.save_file(" in file.read_text()]
    past += [
        file.name
        for file in files
        for line in file.read_text().splitlines()
        if line.startswith("from safetensors.torch import") and "save_file" in line
    ]
    assert past == ["tensor_files.py"]
