"""Workers are forked with all they were given, and start by themselves where that cannot be."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from magicdistill.platform.cluster.forkserver import MODULES, NVIDIA, fork_server

LOOK = f"""
import os, sys
is_forked = {MODULES[-1]!r} in sys.modules
print(sys.argv, os.environ["GIVEN"], os.getcwd(), os.nice(0), __name__, is_forked)
print(os.getpgid(0) == os.getpid(), "ray" in sys.modules, file=sys.stderr)
sys.exit(3)
"""
OWN = """
import time
from magicdistill.platform.cluster.forkserver import fork_server
with fork_server({}):
    print("serving", flush=True)
    time.sleep(60)
"""

pytestmark = pytest.mark.skipif(NVIDIA.exists(), reason="beside GPUs nothing is forked")


@pytest.fixture(scope="module")
def python() -> Iterator[str]:
    with fork_server({"OMP_NUM_THREADS": "1"}) as python:
        assert python is not None
        yield python


def run(python: str, script: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = ["nice", "-n", "5", *shlex.split(python), str(script), "a b", "c"]
    environment = os.environ | {"GIVEN": "something"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )


def expected(script: Path, folder: Path, *, is_forked: bool) -> str:
    arguments = [str(script), "a b", "c"]
    return f"{arguments} something {folder} {os.nice(0) + 5} __main__ {is_forked}\n"


def test_a_script_runs_as_python_would_run_it_but_with_the_packages(python, tmp_path):
    script = tmp_path / "look.py"
    script.write_text(LOOK)
    while True:  # it is served before all is imported
        done = run(python, script, tmp_path)
        assert done.stderr == "True False\n"
        if done.stdout.endswith("True\n"):
            break
    assert done.stdout == expected(script, tmp_path, is_forked=True)


def test_without_a_server_the_script_runs_all_the_same(python, tmp_path):
    script = tmp_path / "look.py"
    script.write_text(LOOK)
    nobody = shlex.join([*shlex.split(python)[:-1], str(tmp_path / "socket")])
    done = run(nobody, script, tmp_path)
    assert done.stdout == expected(script, tmp_path, is_forked=False)
    assert done.returncode == 3


def test_whoever_waits_for_a_worker_sees_its_end(python, tmp_path):
    script = tmp_path / "wait.py"
    script.write_text("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    command = [*shlex.split(python), str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as stand_in:
        assert stand_in.stdout is not None
        worker = psutil.Process(int(stand_in.stdout.readline()))
        assert stand_in.pid != worker.pid and stand_in.poll() is None
        worker.kill()
        assert stand_in.wait(10) == 0
    assert not worker.is_running()


def test_the_server_ends_with_the_process_that_started_it():
    command = [sys.executable, "-c", OWN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "serving\n"
        (server,) = psutil.Process(owner.pid).children()
        folder = Path(server.cmdline()[-1])
        owner.kill()
    end_s = time.monotonic() + 60
    while server.is_running() and time.monotonic() < end_s:
        time.sleep(0.1)
    assert not server.is_running() and not folder.exists()
