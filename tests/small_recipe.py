"""A small recipe of the real kind, as fixtures."""

from pathlib import Path

import pytest

from magicdistill.platform.config.recipe import Recipe, load_recipe

BASE = """
seed: 3
model: {vae: assets/portrait-tiny/vae, teacher: assets/portrait-tiny/teacher}
data: {sources: [{kind: portrait-world, num_clips: 5}]}
method: {name: magic, alpha_weak: 0.5}
schedule:
  num_cycles: 10
  batch_size: 2
  optimizers: {generator: {lr: 1.0e-4}, critic: {lr: 1.0e-3}}
engine: {kind: deepspeed, zero_stage: 3, precision: bf16}
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


@pytest.fixture
def recipe(base: Path) -> Recipe:
    return load_recipe(base)
