"""Items that Ray Data makes come once, in order, and are what a worker would have made itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize("check", ["read alike", pytest.param("none lost", marks=pytest.mark.long)])
def test_what_a_stream_hands_out(check):
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.platform.data.ray_data_stream_job", check],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=240,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert f"{check}: True" in done.stdout, done.stdout + done.stderr
