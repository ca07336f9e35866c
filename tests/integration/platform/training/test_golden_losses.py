"""Every method trains to the recorded losses, gradient norms and weights, to the last bit.

UPDATE_GOLDEN=1 records them again; the commit says why they changed.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.platform.training.golden_losses_job import CASES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[4]
GOLDEN = ROOT / "tests" / "golden"
ONE_ROUNDING = {
    "OMP_NUM_THREADS": "1",  # sums in one order
    "ATEN_CPU_CAPABILITY": "default",  # torch's own kernels: those of every x86-64
    "MKL_NUM_THREADS": "1",
    "MKL_CBWR": "COMPATIBLE",  # matrix products alike on all of Intel's and AMD's processors
    "ONEDNN_MAX_CPU_ISA": "SSE41",  # convolutions
}
"""Processors choose kernels that round differently; these are the same on all."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the texts of one process that trains with all methods."""
    folder = tmp_path_factory.mktemp("golden")
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.platform.training.golden_losses_job", folder],
        cwd=ROOT,
        env=os.environ | ONE_ROUNDING | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_method_trains_to_its_golden_losses(case: str, found: Path) -> None:
    text, golden = (found / f"{case}.txt").read_text(), GOLDEN / f"{case}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


def test_every_golden_text_belongs_to_a_method() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == {*CASES}
