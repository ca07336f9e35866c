"""The patches of DeepSpeed meet the release that is installed, and do what they are for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
LOOK = """
import json, sys
import deepspeed
from deepspeed.runtime import compiler

assert hasattr(compiler, "compile") and hasattr(compiler, "dummy_decorator")
assert "__compatible_ops__" not in vars(deepspeed.ops)  # probed when it is first asked for
if sys.argv[1] == "patched":
    from magicdistill.platform.engines.deepspeed_import import import_deepspeed

    assert import_deepspeed() is import_deepspeed() is deepspeed
    comm = sys.modules["deepspeed.comm.torch"]
    assert comm.build_shm_op() is None  # what a process group builds on processors
    assert deepspeed.ops.__compatible_ops__ == {}  # nothing has replaced it
from deepspeed.runtime.zero.muon import original_muon

decorated = original_muon.zeropower_via_newtonschulz5.__name__
print(json.dumps([decorated, "torch._dynamo" in sys.modules]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("way", "imports_the_compiler"), [("plain", True), ("patched", False)])
def test_the_patch_spares_a_worker_operators_and_torchs_compiler(
    way: str, imports_the_compiler: bool
) -> None:
    result = subprocess.run(
        [sys.executable, "-c", LOOK, way],
        env=os.environ | {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    name, imports_it = json.loads(result.stdout.splitlines()[-1])
    assert (name, imports_it) == ("zeropower_via_newtonschulz5", imports_the_compiler)
