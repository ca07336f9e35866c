"""A job's Ray cluster: it works with a fresh home, is quiet, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[4]
JOB = """
import gc, os, signal, sys, threading, time
sys.path[0] = {root!r}
signal.signal(signal.SIGINT, signal.default_int_handler)
from magicdistill.platform.runs import logs
logs.configure(verbose=False)
import ray
from magicdistill.platform.cluster.ray_cluster import ray_cluster
from magicdistill.platform.config.sections import ClusterConfig

@ray.remote
def look():
    import magicdistill
    print("noise")
    parent = open(f"/proc/{{os.getppid()}}/cmdline").read()
    assert "raylet" in parent, parent  # it starts workers here as on any other cluster
    return magicdistill.__file__, os.environ["OMP_NUM_THREADS"], os.environ["DS_ACCELERATOR"]

class Ring:  # a search for garbage alone frees it
    def __init__(self, ref):
        self.ref, self.own = ref, self

def litter():
    while True:
        Ring(refs.pop()) if refs else [[] for _ in range(10)]
        time.sleep(0.0002)

with ray_cluster(ClusterConfig(threads_per_worker=3, logical_cpus=5)) as shape:
    print(shape.local, shape.num_cpus, *ray.get(look.remote()), flush=True)
    time.sleep({wait_s})
    refs = [ray.put(number) for number in range(8000)]
    gc.set_threshold(10)
    threading.Thread(target=litter, daemon=True).start()  # frees objects while Ray ends
"""


def start(
    folder: Path, wait_s: float, text: str = JOB, home: str | None = None
) -> subprocess.Popen[str]:
    script = folder / "job.py"
    script.write_text(text.format(root=str(ROOT), wait_s=wait_s))
    hidden = {"RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.Popen(
        [sys.executable, str(script)],
        cwd=folder,
        env=environment | {"HOME": home or str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


TERM = pytest.param(signal.SIGTERM, marks=pytest.mark.long)


@pytest.fixture(params=[None, signal.SIGINT, TERM], ids=["end", "ctrl-c", "term"])
def ending(request: pytest.FixtureRequest) -> signal.Signals | None:
    return request.param


@pytest.mark.timeout(120)
def test_a_local_cluster_works_quietly_and_leaves_no_process(
    tmp_path: Path, ending: signal.Signals | None
) -> None:
    job = start(tmp_path, wait_s=60 if ending else 0.1)
    assert job.stdout is not None
    first = job.stdout.readline()
    processes = psutil.Process(job.pid).children(recursive=True)
    if ending == signal.SIGINT:
        os.killpg(job.pid, ending)  # a terminal sends it to all
    elif ending == signal.SIGTERM:
        os.kill(job.pid, ending)
    rest, errors = job.communicate(timeout=60)
    assert first == f"True 5.0 {ROOT / 'magicdistill' / '__init__.py'} 3 cpu\n", errors
    assert len(processes) > 3
    assert [process for process in processes if is_alive(process)] == []
    assert (tmp_path / ".ray" / "auth_token").exists()
    assert errors == ""
    assert ("interrupted" in rest) == (ending == signal.SIGINT)
    assert (job.returncode == 0) == (ending is None)


LOST = """
import sys, time
sys.path[0] = {root!r}
from magicdistill.platform.runs import logs
logs.configure(verbose=False)
import psutil, ray
from magicdistill.platform.cluster.ray_cluster import ray_cluster
from magicdistill.platform.config.sections import ClusterConfig

@ray.remote
def nap():
    time.sleep(300)

with logs.resume_hint("the same command"), ray_cluster(ClusterConfig(dashboard=False)):
    nap = nap.remote()
    processes = psutil.Process().children(recursive=True)
    (control,) = [process for process in processes if process.name() == "gcs_server"]
    control.kill()
    ray.get(nap)
"""


@pytest.mark.timeout(120)
@pytest.mark.slow
def test_a_job_that_loses_its_cluster_says_so_and_leaves_no_process(tmp_path: Path) -> None:
    job = start(tmp_path, 0, LOST, home="/proc/nowhere")
    out, errors = job.communicate(timeout=100)
    assert "stopped; continue with the same command" in out
    assert "Ray's control service at" in out and "is gone" in out
    assert "/proc/nowhere/.ray cannot be written; Ray's token is in" in out
    assert (errors, job.returncode) == ("", 1)
    assert [
        process for process in psutil.process_iter() if home_of(process) == "/proc/nowhere"
    ] == []


def home_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("HOME")
    except psutil.Error:
        return None
