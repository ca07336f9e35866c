"""Plans against DeepSpeed and a split sequence on two gloo ranks, and the command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import multiprocessing

from tests.integration.platform.launch.planning_rank import NUM_RANKS, run_rank

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict[str, float]]]:
    out = tmp_path_factory.mktemp("planning") / "found.json"
    os.environ["DS_ACCELERATOR"] = "cpu"
    multiprocessing.set_forkserver_preload([run_rank.__module__])  # one process imports for both
    multiprocessing.start_processes(run_rank, (out,), nprocs=NUM_RANKS, start_method="forkserver")
    return json.loads(out.read_text())


def test_states_and_activations_are_predicted_within_a_tenth(found) -> None:
    assert len(found) >= 8
    for name, check in found.items():
        for kind, predicted in check["predicted"].items():
            measured = check["measured"][kind]
            print(f"{name:32} {kind:18} {predicted:10.0f} {measured:10.0f}")
            assert predicted == pytest.approx(measured, rel=0.1), (name, kind)


def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "plan.py"), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.long
def test_the_command_prints_a_plan() -> None:
    fitting = plan("--recipe", "magic141-4step-40xh100")
    assert fitting.returncode == 0, fitting.stderr
    assert "magic141-4step-40xh100 fits" in fitting.stdout


@pytest.mark.long
def test_the_command_tells_by_its_status_what_does_not_fit() -> None:
    other = plan("--recipe", "magic141-4step-8xh100", "--json", "--engine.zero_stage", "1")
    assert other.returncode == 1
    assert json.loads(other.stdout)["remedies"]
