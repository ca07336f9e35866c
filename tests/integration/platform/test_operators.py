"""A build that was killed must not stop the next run."""

import os
import subprocess
import sys
from pathlib import Path

from magicdistill.platform.operators import FOLDER

LOAD = """
import sys
sys.path[0] = ""
from magicdistill.platform.operators import load_shared_memory_operator
load_shared_memory_operator()
print("loaded")
"""


def load() -> str:
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}
    environment.pop("TORCH_EXTENSIONS_DIR", None)
    command = [sys.executable, "-c", LOAD]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    return done.stdout.splitlines()[-1]


def test_the_mark_of_a_killed_build_is_swept_away():
    assert load() == "loaded"
    mark = Path(FOLDER.expanduser()) / "deepspeed_shm_comm" / "lock"
    mark.touch()
    assert load() == "loaded"
    assert not mark.exists()
