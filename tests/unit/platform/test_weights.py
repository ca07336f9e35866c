from pathlib import Path

import pytest
import torch

from magicdistill.models.networks.config import TransformerConfig
from magicdistill.models.networks.transformer import (
    VelocityModel,
    build_transformer,
    load_transformer,
)
from magicdistill.platform.config import OptimizerConfig, TorchEngineConfig
from magicdistill.platform.engine import build_engine
from magicdistill.platform.weights import role_weights

SHAPES = TransformerConfig(
    num_attention_heads=2,
    attention_head_dim=12,
    num_layers=1,
    num_single_layers=1,
    num_refiner_layers=1,
    rope_axes_dim=(4, 4, 4),
    text_embed_dim=6,
    pooled_projection_dim=6,
    num_text_tokens=2,
    latent_channels=4,
)


def test_a_checkpoint_of_the_torch_engine_starts_another_run(tmp_path: Path):
    model = VelocityModel(build_transformer(SHAPES))
    engine = build_engine(TorchEngineConfig(), model, OptimizerConfig(lr=1.0), num_micro_batches=1)
    engine.save(tmp_path / "generator")
    expected = dict(model.named_parameters())
    found = role_weights(tmp_path / "generator")
    assert found.keys() == expected.keys()
    loaded = VelocityModel(load_transformer(tmp_path / "generator" / "state.pt", SHAPES))
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, expected[name]) and torch.equal(found[name], expected[name])


def test_a_folder_where_no_engine_saved_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no engine"):
        role_weights(tmp_path)
