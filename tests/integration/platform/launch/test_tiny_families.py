"""A tiny network of each other family goes the whole way of the smoke recipe, on random weights."""

import subprocess
import sys
from pathlib import Path

import pytest

from magicdistill.platform.evaluation.evaluate_run import read_scores
from magicdistill.platform.runs.run_directory import RunDirectory
from tests.ray_head import ROOT

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
NUM_TEXT_TOKENS = {"hunyuan15-tiny": 4, "wan-tiny": 512}


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("preset", "flags"),
    [
        ("hunyuan15-tiny", []),
        ("wan-tiny", ["--method.interval.min", "0.9", "--evaluation.num_scored", "2"]),
    ],
    ids=["hunyuan15", "one of two experts"],
)
def test_distill_ends_with_a_table(preset: str, flags: list[str], tmp_path: Path) -> None:
    weights = str(tmp_path / "weights")
    run("-m", "benchmarks.random_weights", preset, weights, *["--experts"][: len(flags)])
    flags = [*flags]
    for data in ("data", "evaluation.data"):
        flags += [f"--{data}.null_text.num_tokens", str(NUM_TEXT_TOKENS[preset])]
        flags += [f"--{data}.null_text.pooled_dim", "0"]
    flags += ["--model.preset", preset, "--model.vae", weights, "--model.teacher", weights]
    recipe = ["--recipe", "portrait-tiny-smoke", "--runs", str(tmp_path / "runs")]
    said = run("jobs/distill.py", *recipe, *flags)
    done = RunDirectory.open("latest", root=str(tmp_path / "runs"))
    assert [row.variant for row in read_scores(done)] == ["teacher", "euler", "student"]
    assert len(list(done.metrics())) == 2 and (done.path / "samples" / "comparison.mp4").exists()
    assert "could not be scored" not in said
