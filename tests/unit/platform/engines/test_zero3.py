from pathlib import Path

import pytest
import torch

from magicdistill.models.networks.transformer import (
    VelocityModel,
    build_transformer,
)
from magicdistill.platform.checkpoints.role_weights import role_weights
from magicdistill.platform.config.sections import OptimizerConfig, TorchEngineConfig
from magicdistill.platform.engines.engine import build_engine
from tests.tiny import tiny_shapes

SHAPES = tiny_shapes()


def test_the_weights_of_a_role_are_read_one_by_one(tmp_path: Path):
    model = VelocityModel(build_transformer(SHAPES))
    engine = build_engine(TorchEngineConfig(), model, OptimizerConfig(lr=1.0), num_micro_batches=1)
    engine.snapshot().write(tmp_path / "generator")
    found, expected = role_weights(tmp_path / "generator"), dict(model.named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(read(), expected[name]) for name, read in found.items())


def test_a_folder_where_no_engine_saved_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no training state"):
        role_weights(tmp_path)
