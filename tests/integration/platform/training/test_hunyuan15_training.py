"""Weak-to-strong distillation of a tiny HunyuanVideo-1.5 from random weights, on one CPU."""

import math
import re
from pathlib import Path

import torch

from magicdistill.models.networks.backbones.registry import family_in
from magicdistill.models.networks.transformer import VelocityModel, load_transformer
from magicdistill.platform.checkpoints.role_weights import role_weights
from magicdistill.platform.export.export import export
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.training.worker import Worker
from tests.tiny_run import tiny_recipe, write_cache

NULL = {"null_text": {"num_tokens": 4, "token_dim": 64, "pooled_dim": 0}}


def test_a_tiny_hunyuan15_is_trained_by_w2s_and_exported(tmp_path: Path) -> None:
    recipe = tiny_recipe(
        2,
        model={"preset": "hunyuan15-tiny", "vae": None},
        data=NULL,
        schedule={"num_cycles": 1, "checkpoint_every": 1, "ema_decay": None},
        kernels={"recompute_blocks": "selective"},
    )
    cache = write_cache(tmp_path / "cache", shape=(32, 5, 4, 4), num_rows=8)
    run = RunDirectory.create(tmp_path / "runs", recipe)
    worker = Worker(run, cache, None, rank=0, world_size=1)
    roles = worker.method.modules
    before = {
        f"{role}.{name}": parameter.detach().clone()
        for role, module in roles.items()
        for name, parameter in module.named_parameters()
    }
    worker.run_all()
    (row,) = run.metrics()
    assert row["critic/discriminator"] > 0 and math.isfinite(row["generator/dmd"])
    idle = re.compile(recipe.model.shapes.transformer.idle_parameters or "")
    for role, module in roles.items():
        for name, parameter in module.named_parameters():
            moved = not torch.equal(parameter, before[f"{role}.{name}"])
            reaches = parameter.requires_grad and not idle.search(name)
            assert moved <= reaches, f"{role}.{name}"
    generator = dict(roles["generator"].named_parameters())
    still = [name for name, p in generator.items() if p.equal(before[f"generator.{name}"])]
    assert len(still) < len(generator) / 4, still

    export(str(run.path), tmp_path / "model", dtype="fp32", say=lambda line: None)
    folder = tmp_path / "model" / "transformer"
    assert family_in(folder).class_name == "HunyuanVideo15Transformer3DModel"
    assert "jobs/sample.py" in (tmp_path / "model" / "README.md").read_text()
    student = VelocityModel(load_transformer(folder))
    saved = role_weights(run.checkpoints / "cycle-0000001" / "generator")
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter, saved[name]()), name
