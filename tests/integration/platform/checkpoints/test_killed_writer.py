"""A process that is killed while it writes a checkpoint beside the training."""

import subprocess
import sys
import time
from pathlib import Path

import torch

from magicdistill.platform.checkpoints.checkpoints import Checkpoints
from tests.engines import make_engine

SAVE_UNTIL_KILLED = """
from pathlib import Path
from sys import argv
from magicdistill.platform.checkpoints.checkpoints import Checkpoints
from tests.engines import SlowDiskEngine, make_engine
checkpoints = Checkpoints(Path(argv[1]), keep=1)
checkpoints.save(4, {"net": make_engine(SlowDiskEngine)}, None, beside=True)
checkpoints.wait()
"""


def test_a_kill_while_one_is_written_leaves_the_previous_ones_whole(tmp_path: Path) -> None:
    checkpoints, engine = Checkpoints(tmp_path, keep=2), make_engine()
    for cycle in (2, 3):
        checkpoints.save(cycle, {"net": engine}, None)
    command = [sys.executable, "-c", SAVE_UNTIL_KILLED, str(tmp_path)]
    begun = tmp_path / "cycle-0000004" / "net"
    with subprocess.Popen(command) as process:
        while not (begun / "state.json").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    assert (begun / "rank-00000.safetensors").stat().st_size
    assert checkpoints.names() == ["cycle-0000002", "cycle-0000003"]
    restored = make_engine()
    assert checkpoints.load_latest({"net": restored}, None) == 3
    weight, expected = (e.module.state_dict()["weight"] for e in (restored, engine))
    assert torch.equal(weight, expected)
    checkpoints.save(4, {"net": make_engine()}, None)
    assert checkpoints.names() == ["cycle-0000003", "cycle-0000004"]
