"""Under ZeRO-3 every method's parameters are gathered before they are needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from magicdistill.models.methods.registry import METHODS
from tests.integration.platform.engines.prefetching_job import CASES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[4]
UNTRAINED = "euler"
LEAST_GATHERED = 40


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """What one process that trains with all methods has counted."""
    out = tmp_path_factory.mktemp("prefetching") / "found.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.platform.engines.prefetching_job", out],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text())


@pytest.mark.parametrize("case", CASES)
def test_no_fetch_waits_and_no_trace_is_thrown_away(
    case: str, found: dict[str, dict[str, int]]
) -> None:
    counted = found[case]
    assert counted["invalidated"] == 0
    assert counted["late"] <= 0.01 * counted["gathered"]
    assert counted["gathered"] >= LEAST_GATHERED  # the limits are in force: little is kept


def test_every_method_that_trains_is_counted() -> None:
    named = {case["name"] for case in CASES.values()}
    assert named | {UNTRAINED} == set(METHODS.names())
