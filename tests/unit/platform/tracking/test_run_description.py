"""What MLflow says of a run, and the load of this machine."""

import json
from pathlib import Path

import pytest

from magicdistill.platform.config.recipe import load_recipe
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.tracking.run_description import COLUMNS, describe
from magicdistill.platform.tracking.system_metrics import LOOKS, SystemMonitor


@pytest.mark.parametrize(
    ("recipe", "purpose"),
    [
        ("portrait-tiny-vae", "vae"),
        ("portrait-tiny-teacher", "teacher"),
        ("portrait-tiny", "distillation"),
        ("portrait-tiny-1step", "1-step"),
    ],
)
def test_a_recipes_purpose_follows_from_its_method(recipe: str, purpose: str) -> None:
    assert load_recipe(recipe).method.purpose == purpose


def test_a_run_is_described_with_its_scores_once_it_has_some(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, load_recipe("portrait-tiny-1step"))
    before = describe(run)
    assert before.startswith("**Distillation to 1 step** by `magic`")
    assert "240 cycles, 8 clips in each update" in before and "Held-out" not in before
    row = dict.fromkeys(COLUMNS, 0.12345) | {"variant": "student", "sampler": "euler", "nfe": 1}
    run.scores_path.write_text(json.dumps([row]))
    assert "| student | euler | 1 | 0.123 |" in describe(run)


def test_every_tenth_look_at_the_machine_gives_its_load() -> None:
    monitor = SystemMonitor()
    found = [monitor.look() for _ in range(2 * LOOKS)]
    assert [bool(load) for load in found] == ([False] * (LOOKS - 1) + [True]) * 2
    assert 0 <= found[-1]["system/cpu_utilization_percentage"] <= 100
    assert 0 < found[-1]["system/system_memory_usage_percentage"] < 100
