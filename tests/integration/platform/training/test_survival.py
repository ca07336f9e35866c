"""Killed and preempted runs end with the losses of an undisturbed one, to the last bit."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from magicdistill.platform.runs.run_directory import RunDirectory

ROOT = Path(__file__).parents[4]
RECIPE = """
extends: portrait-tiny-smoke
evaluation: null
schedule:
  num_cycles: 10
  checkpoint_every: 3
  sample_every: null
engine: {kind: torch, precision: fp32}
cluster: {num_workers: 2, dashboard: false}
"""


LONG = ("--schedule.num_cycles", "500")


class Job:
    """A running `jobs/distill.py` and what it prints."""

    def __init__(self, process: subprocess.Popen[str], root: Path) -> None:
        self.process, self.root, self.lines = process, root, list[str]()

    @property
    def run(self) -> RunDirectory:
        """The newest run, which need not have trained yet."""
        made = self.root.glob("*/provenance.json")
        return RunDirectory(max(made, key=lambda path: path.stat().st_mtime_ns).parent)

    def wait_for(self, text: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if text in line:
                return
        raise AssertionError(f"the job ended without {text!r}:\n{''.join(self.lines)}")

    def wait_for_cycle(self, cycle: int) -> None:
        """Wait until so many cycles are recorded: the next one has begun."""
        while max((row["step"] for row in self.run.metrics()), default=0) < cycle:
            assert self.process.poll() is None, "".join(self.lines)
            time.sleep(0.02)

    def workers(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if _title(child) == "ray::RayTrainWorker"]

    def end(self) -> str:
        assert self.process.stdout is not None
        self.lines += list(self.process.stdout)
        self.process.wait()
        return "".join(self.lines)


def _title(process: psutil.Process) -> str:
    try:
        return next(iter(process.cmdline()), "")
    except psutil.NoSuchProcess:
        return ""


@contextmanager
def distill(root: Path, *arguments: str) -> Iterator[Job]:
    command = [sys.executable, str(ROOT / "jobs" / "distill.py"), "--runs", str(root), *arguments]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"MARK": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield Job(process, root)
        finally:
            process.kill()


def losses(run: RunDirectory) -> list[dict[str, float]]:
    return [
        {name: value for name, value in row.items() if name.startswith(("critic/", "generator/"))}
        for row in run.metrics()
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    (root / "survival.yaml").write_text(RECIPE)
    return root


@pytest.fixture(scope="module")
def undisturbed(root) -> list[dict[str, float]]:
    with distill(root, "--recipe", str(root / "survival.yaml")) as job:
        output = job.end()
    assert job.process.returncode == 0, output
    series = losses(job.run)
    assert len(series) == 10
    return series


@pytest.mark.long
def test_a_run_outlives_a_killed_worker(root, undisturbed):
    with distill(root, "--recipe", str(root / "survival.yaml")) as job:
        job.wait_for("starting the training workers")
        job.wait_for_cycle(4)
        job.workers()[0].kill()
        job.wait_for("died: ")
        said = job.lines[-1]
        assert "rank " in said and " on " in said and "the workers start again from cycle " in said
        assert "restarts left after this one: 1" in said
        job.wait_for("continuing after cycle ")
        output = job.end()
    assert job.process.returncode == 0, output
    assert losses(job.run) == undisturbed


@pytest.mark.long
def test_preempted_nodes_workers_and_jobs_save_and_a_killed_job_resumes(root, undisturbed):
    with distill(root, "--recipe", str(root / "survival.yaml")) as job:
        job.wait_for("starting the training workers")
        job.wait_for_cycle(1)
        job.process.terminate()
        output = job.end()
    assert job.process.returncode == 128 + signal.SIGTERM
    assert "asked to leave" in output and "--resume" in output
    saved = len(losses(job.run))
    assert saved < 6
    with distill(root, "--resume", str(job.run.path)) as job:
        job.wait_for(f"continuing after cycle {saved}\n")
        job.wait_for_cycle(saved + 1)
        second = subprocess.run(
            [sys.executable, "jobs/distill.py", "--resume", str(job.run.path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert second.returncode == 2
        assert f"is in use by jobs/distill.py --runs {root}" in second.stderr
        assert f"process {job.process.pid} on" in second.stderr
        job.workers()[1].terminate()
        job.wait_for("asked to restart")
        job.wait_for("continuing after cycle ")
        workers = job.workers()
        job.wait_for_cycle(len(losses(job.run)))
        job.process.kill()
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert len(workers) == 2 and alive == []  # two trainings in one folder would be a mess
    assert len(losses(job.run)) < 10
    with distill(root, "--resume", str(job.run.path)) as job:
        output = job.end()
    assert job.process.returncode == 0, output
    assert losses(job.run) == undisturbed


@pytest.mark.long
def test_a_node_that_ray_takes_away_lets_the_run_save(root, undisturbed):
    with distill(root, "--recipe", str(root / "survival.yaml"), *LONG) as job:
        job.wait_for("starting the training workers")
        job.wait_for_cycle(1)
        drain(job)
        job.wait_for("asked to save")
        saved = int(job.lines[-1].split("saved cycle ")[1].split(",")[0])
        assert f"cycle-{saved:07d}" in {path.name for path in job.run.checkpoints.iterdir()}
        job.process.terminate()
        job.end()
    assert losses(job.run)[:10] == undisturbed[: len(losses(job.run))]


def drain(job: Job) -> None:
    """Announce to the job's Ray that its only node goes away in ten minutes."""
    children = psutil.Process(job.process.pid).children(recursive=True)
    raylet = next(child for child in children if child.name() == "raylet").cmdline()
    options = dict(part.lstrip("-").split("=", 1) for part in raylet if "=" in part)
    ray = [str(Path(sys.executable).parent / "ray"), "drain-node"]
    ray += ["--address", options["gcs-address"], "--node-id", options["node_id"]]
    ray += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test"]
    token = {"RAY_AUTH_MODE": "token"}
    subprocess.run(
        [*ray, "--deadline-remaining-seconds", "600"],
        env=os.environ | token,
        check=True,
        capture_output=True,
    )
