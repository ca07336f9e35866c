"""Scoring a generator: the table, its parts, and going on where an evaluation stopped."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "assets" / "portrait-tiny" / "student-4step"


def evaluate(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "jobs/evaluate.py", "--recipe", "portrait-tiny-smoke"]
    command += ["--runs", str(folder), *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def scores(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("evaluations/*/scores.json")
    return json.loads(path.read_text())


@pytest.mark.long
@pytest.mark.timeout(600)
def test_scores_do_not_depend_on_where_an_evaluation_stopped(tmp_path: Path) -> None:
    first = evaluate(tmp_path, "--model", str(MODEL))
    assert first.returncode == 0, first.stdout + first.stderr
    assert "parts: 0 kept, 4 to measure" in first.stdout
    assert "absent fid: no folder of metric weights was given" in first.stdout
    table = scores(tmp_path)
    assert [way["name"] for way in table["ways"]] == ["real", "teacher", "euler", "student"]
    real, *generated = table["ways"]
    assert real["metrics"]["proxy_frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert real["metrics"]["dynamic_degree_proxy"] == 1
    for way in generated:
        assert way["metrics"]["proxy_frechet_distance"] > 1e-4
        assert 0.5 < way["metrics"]["temporal_flickering"] < 1
        assert "fid" in way["absent"] and "average" in way["absent"]

    parts = sorted(tmp_path.glob("evaluations/*/parts/*.npz"))
    assert len(parts) == 4
    parts[1].unlink()
    again = evaluate(tmp_path, "--model", str(MODEL))
    assert again.returncode == 0, again.stdout + again.stderr
    assert "parts: 3 kept, 1 to measure" in again.stdout
    assert scores(tmp_path) == table


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    found = evaluate(tmp_path, "--model", str(tmp_path / "nothing"))
    assert found.returncode == 2 and "--model: no weights" in found.stderr
