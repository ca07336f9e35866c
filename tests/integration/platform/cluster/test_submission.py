"""Jobs submitted to a running Ray cluster, with token authentication on."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from magicdistill.platform.cluster.cron_scheduler import History
from tests.ray_head import ROOT, Head, ray_head

LOOK = """
import ray, magicdistill
from magicdistill.platform.cluster.ray_cluster import ray_cluster
from magicdistill.platform.config.sections import ClusterConfig
look = ray.remote(lambda: __import__("magicdistill").__file__)
with ray_cluster(ClusterConfig()) as shape:
    print("SEEN", shape.local, magicdistill.__file__, ray.get(look.remote()))
"""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as head:
        yield head


@pytest.mark.slow
def test_driver_and_workers_of_a_submitted_job_import_the_uploaded_copy(head: Head) -> None:
    result = head.submit(sys.executable, "-c", LOOK)
    assert result.returncode == 0, result.stdout + result.stderr
    [line] = [line for line in result.stdout.splitlines() if line.startswith("SEEN")]
    _, local, driver, worker = line.split()
    assert local == "False"
    assert driver == worker
    assert Path(driver).is_relative_to(head.folder / "ray")


@pytest.mark.slow
def test_a_job_without_the_token_is_refused(head: Head) -> None:
    stranger = Head(head.folder, head.environment | {"RAY_AUTH_TOKEN": "0" * 64}, head.dashboard)
    result = stranger.submit(sys.executable, "-c", "print('let in')")
    assert result.returncode != 0
    assert "let in" not in result.stdout


OVERLAP = """
import pathlib, sys, time
log = pathlib.Path(sys.argv[1])
with log.open("a") as file: file.write("begin ")
time.sleep(2)
with log.open("a") as file: file.write("end ")
"""
EVERY_SECOND = ("--cron", "* * * * * *")
NEW_YEAR = ("--cron", "0 0 1 1 *")


@dataclass
class Schedule:
    """One schedule's command line on a head."""

    head: Head
    history: Path
    started: ExitStack

    def start(self, *flags: str, job: str, argument: Path) -> subprocess.Popen[str]:
        (self.history.parent / "code").mkdir(exist_ok=True)
        own = ["--address", self.head.dashboard, "--history", str(self.history), *flags]
        own += ["--working-dir", str(self.history.parent / "code")]
        entrypoint = [sys.executable, "-c", job, str(argument)]
        process = subprocess.Popen(
            [sys.executable, "jobs/schedule.py", *own, "--", *entrypoint],
            cwd=ROOT,
            env=self.head.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.enter_context(process)
        self.started.callback(process.kill)
        return process

    def states(self) -> list[str]:
        return [record.state for record in History(self.history).records()]

    def wait_for(self, state: str) -> None:
        end_s = time.monotonic() + 60
        while state not in self.states():
            assert time.monotonic() < end_s, f"no {state!r} in {self.states()}"
            time.sleep(0.2)


@pytest.fixture
def schedule(head: Head, tmp_path: Path) -> Iterator[Schedule]:
    with ExitStack() as started:
        yield Schedule(head, tmp_path / "history.jsonl", started)


@pytest.mark.slow
def test_two_schedulers_of_one_history_never_run_two_jobs_at_once(
    schedule: Schedule, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    flags = (*EVERY_SECOND, "--max-runs", "1", "--name", "twins")
    twins = [schedule.start(*flags, job=OVERLAP, argument=log) for _ in range(2)]
    outputs = [twin.communicate(timeout=120)[0] for twin in twins]
    assert [twin.returncode for twin in twins] == [0, 0], outputs
    assert log.read_text().split() == ["begin", "end"] * 2
    assert [state for state in schedule.states() if state != "skipped"] == [
        "started",
        *["submitted", "succeeded"] * 2,
    ]


@pytest.mark.slow
def test_a_schedule_that_was_killed_finds_its_job_again_and_stops_it_when_told(
    schedule: Schedule, tmp_path: Path
) -> None:
    wait, name = "import time; time.sleep(300)", ("--name", "long")
    first = schedule.start("--once", *name, job=wait, argument=tmp_path)
    schedule.wait_for("submitted")
    first.kill()
    first.communicate()
    second = schedule.start("--once", *name, job=wait, argument=tmp_path)
    assert "is still running" in second.communicate(timeout=60)[0]
    assert second.returncode == 0
    third = schedule.start(*NEW_YEAR, "--stop-job", *name, job=wait, argument=tmp_path)
    assert third.stdout is not None
    assert "is running" in third.stdout.readline()
    third.terminate()
    assert "stopped after" in third.communicate(timeout=60)[0]
    assert third.returncode == 0
    assert schedule.states() == ["submitted", "skipped", "stopped"]


@pytest.mark.slow
def test_a_schedule_without_the_token_is_refused(schedule: Schedule, tmp_path: Path) -> None:
    head = schedule.head
    environment = head.environment | {"RAY_AUTH_TOKEN": "0" * 64}
    stranger = Head(head.folder, environment, head.dashboard)
    process = replace(schedule, head=stranger).start(*NEW_YEAR, job="print(1)", argument=tmp_path)
    assert "token" in process.communicate(timeout=60)[0]
    assert process.returncode == 2
