"""The checkpoint of a LoRA student is scored on its teacher's weights, and its model is merged."""

from pathlib import Path

import pytest
import torch

from magicdistill.models.networks.presets import PRESETS
from magicdistill.models.networks.transformer import (
    VelocityModel,
    build_transformer,
    load_transformer,
)
from magicdistill.models.networks.weights import save_transformer
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.engines.ema import averaged
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.training.checkpoint_evaluator import CheckpointEvaluator
from magicdistill.platform.training.validation import Validation
from magicdistill.platform.training.worker import Worker
from tests.tiny_run import tiny_recipe, write_cache


def recipe_of(teacher: Path) -> Recipe:
    values = tiny_recipe(2, model={"preset": "nano", "teacher": str(teacher)}).model_dump()
    values["method"] |= {"num_fake_updates": 1, "student": {"kind": "lora", "rank": 4}}
    values["schedule"] |= {"num_cycles": 1, "ema_decay": 0.5}
    values["schedule"]["optimizers"]["generator"] |= {"lr": 0.3}
    values["evaluation"] |= {"num_shown": 1, "num_scored": 2}
    values["health"] = {"action": "off"}
    return Recipe.model_validate(values)


def test_a_lora_student_is_scored_and_written_as_it_was_trained(tmp_path):
    torch.manual_seed(0)
    save_transformer(
        build_transformer(PRESETS["nano"].transformer), tmp_path / "teacher", torch.float32
    )
    run = RunDirectory.create(tmp_path / "runs", recipe_of(tmp_path / "teacher"), "lora")
    cache = write_cache(tmp_path / "latents", (16, 3, 4, 4), num_rows=8)
    worker = Worker(run, cache, cache, rank=0, world_size=1, is_scored_apart=True)
    worker.run_all()
    found = CheckpointEvaluator(run, str(cache)).score(run.checkpoints / "cycle-0000001")
    own = Validation(run.recipe(), cache, rank=0, world_size=1, device="cpu", num_scored=2)
    with averaged(worker.ema):
        student = worker.engines["generator"].module
        expected = own.scores(student)
        written = own.scores(VelocityModel(load_transformer(run.path / "model")))
    teacher = own.scores(VelocityModel(load_transformer(tmp_path / "teacher")))
    assert found == pytest.approx(expected, rel=1e-4)
    assert written == pytest.approx(expected, rel=0.05)  # it is in fp16
    assert found != pytest.approx(teacher, rel=1e-3)
