"""What tests of curation share."""

from pathlib import Path

import pytest
import torch

from magicdistill.models.networks.autoencoder.hunyuan_video import HunyuanVideoVaeConfig
from magicdistill.models.networks.autoencoder.vae import VideoVae, build_autoencoder


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a small VAE of random weights; return its folder."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("vae")
    config = HunyuanVideoVaeConfig(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    VideoVae(build_autoencoder(config)).save(directory)
    return directory
