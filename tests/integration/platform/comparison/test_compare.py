"""A small comparison, stopped on the way and continued with the same command."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from magicdistill.platform.comparison.comparison_recipe import load_comparison, plan
from magicdistill.platform.comparison.run_comparison import find_run

ROOT = Path(__file__).parents[4]
RECIPE = """
base: portrait-tiny-smoke
runs: {runs}
overrides:
  engine: {{kind: torch}}
  schedule: {{num_cycles: 30, sample_every: 10}}
  evaluation: {{num_scored: 4, scored_by: workers}}
methods:
  euler: {{method: {{name: euler}}}}
  magic: {{method: {{name: magic}}}}
seeds: [0]
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("compare")
    path = folder / "two-methods.yaml"
    path.write_text(RECIPE.format(runs=folder / "runs"))
    return [sys.executable, str(ROOT / "jobs" / "compare.py"), "--recipe", str(path)]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_stopped_comparison_goes_on_where_it_was(command: list[str]) -> None:
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        for line in job.stdout:
            if "cycle 5/30" in line:
                break
        job.send_signal(signal.SIGINT)
        rest = job.stdout.read()
    assert job.returncode != 0 and "the same command" in rest

    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "euler, seed 0: finished already" in again.stdout
    assert "magic, seed 0: continuing" in again.stdout
    assert "continuing after cycle " in again.stdout

    comparison = load_comparison(command[-1])
    runs = {planned.label: find_run(planned.recipe) for planned in plan(comparison, {})}
    home = Path(comparison.runs) / comparison.name
    report = (home / "report.md").read_text()
    assert all(run is not None and run.scores_path.exists() for run in runs.values())
    assert "| euler |" in report and "| magic |" in report
    assert (home / "samples" / "comparison.mp4").stat().st_size > 1000
    assert (home / "samples" / "curves-two-methods.png").stat().st_size > 1000
