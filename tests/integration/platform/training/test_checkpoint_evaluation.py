"""Checkpoints are scored on an actor while the training goes on; the best of them is kept."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def facts(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("evaluated")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.integration.platform.training.checkpoint_evaluation_job",
            str(folder),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "facts.json").read_text())


def test_the_actor_measures_what_a_worker_would(facts):
    assert [row["step"] for row in facts["rows"]] == [1, 2, 3]
    last = {name: value for name, value in facts["rows"][-1].items() if name != "step"}
    assert "validation/temporal_flickering" in last
    assert last == pytest.approx(facts["own"], rel=1e-4)
    assert "cycle 3 scored on 4 clips  validation/" in facts["said"]


def test_the_best_checkpoint_by_these_scores_is_kept(facts):
    distances = {row["step"]: row["validation/proxy_frechet_distance"] for row in facts["rows"]}
    assert facts["best"] == min(distances, key=distances.__getitem__)
    before = min((1, 2), key=distances.__getitem__)
    assert facts["kept"] == [before, 3]  # one is kept: the newest, and what was best when it came
    assert not facts["held"]


def test_without_room_the_workers_score(facts):
    assert not facts["has_gpu"]
