"""One job at a time writes in a run, and no job that is gone keeps others out."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.launch.run_job import sole_writer
from magicdistill.platform.runs import run_lock
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.runs.run_lock import SILENT_S, RunInUseError, locked

HOLD = """
import sys
from pathlib import Path
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.runs.run_lock import locked
with locked(RunDirectory(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path: Path, recipe: Recipe) -> RunDirectory:
    return RunDirectory.create(tmp_path / "runs", recipe, "a-run")


def test_a_second_job_is_told_who_is_there_since_when_and_what_to_do(run: RunDirectory) -> None:
    with locked(run):
        with pytest.raises(RunInUseError) as refusal, locked(run):
            pass
        holder = json.loads(run.lock_path.read_text())
    message = str(refusal.value)
    assert message.startswith("run a-run is in use by ")
    assert f"(process {os.getpid()} on {os.uname().nodename}, since 20" in message
    assert holder["job"] in message and f"touch {run.stop_path}" in message
    assert "\n" not in message and "try again in" not in message
    assert not run.lock_path.exists()
    with locked(run):
        pass


def test_a_job_of_a_run_that_is_in_use_ends_with_2_and_one_sentence(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(run), pytest.raises(SystemExit) as ending, sole_writer(run):
        pass
    assert ending.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("run a-run is in use by ") and errors.count("\n") == 1


def test_readers_need_no_lock(run: RunDirectory) -> None:
    with locked(run):
        run.append_metrics(1, {"loss": 1.0})
        assert list(RunDirectory.open(run.path).metrics()) == [{"step": 1, "loss": 1.0}]


@pytest.fixture
def killed(run: RunDirectory) -> RunDirectory:
    """A run whose job was killed, and has not been waited for yet by who started it."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as job:
        assert job.stdout is not None and job.stdout.readline() == b"held\n"
        with pytest.raises(RunInUseError, match=f"process {job.pid} on"), locked(run):
            pass
        job.kill()
        while "Z" not in Path(f"/proc/{job.pid}/stat").read_text():
            time.sleep(0.01)
        with locked(run):  # it is a zombie
            pass
    return run


def test_a_killed_job_keeps_nobody_out(killed: RunDirectory) -> None:
    assert not killed.lock_path.exists()


def rewrite(run: RunDirectory, *, silent_s: float = 0.0, **facts: Any) -> None:
    """Change what a lock says, and when its last sign of life came."""
    holder = json.loads(run.lock_path.read_text()) | facts
    run.lock_path.write_text(json.dumps(holder))
    then = time.time() - silent_s
    os.utime(run.lock_path, (then, then))


@pytest.mark.parametrize(
    ("facts", "refusal"),
    [
        ({"started": "1"}, None),  # another process has its number by now
        ({"pid": 2**22 + 1}, None),
        ({"host": "far-away"}, r"try again in 1[678]\d s if it was killed"),
        ({"machine": "this host, before it was started again"}, r"try again in 1[678]\d s"),
        ({"host": "far-away", "silent_s": SILENT_S - 100}, r"try again in (100|[89]\d) s"),
        ({"host": "far-away", "silent_s": SILENT_S + 20}, None),
        ({"silent_s": SILENT_S + 20}, r"stop\)$"),  # a laptop that was asleep
    ],
)
def test_a_job_that_is_gone_is_told_from_one_that_runs(
    run: RunDirectory, facts: dict[str, Any], refusal: str | None
) -> None:
    with locked(run):
        rewrite(run, **facts)
        shutil.copy2(run.lock_path, run.path / "kept")
    (run.path / "kept").rename(run.lock_path)
    with pytest.raises(RunInUseError, match=refusal) if refusal else nullcontext(), locked(run):
        pass


@pytest.mark.parametrize("content", [b"", b"\0" * 300, b'{"token": "1", "jo'])
def test_a_lock_that_a_power_cut_has_damaged_counts_until_it_is_old(
    run: RunDirectory, content: bytes
) -> None:
    run.lock_path.write_bytes(content)
    with pytest.raises(RunInUseError, match=r"try again in 1[678]\d s"), locked(run):
        pass
    os.utime(run.lock_path, (0, 0))
    with locked(run):
        pass


def test_a_copy_of_a_run_that_trains_is_free(run: RunDirectory, tmp_path: Path) -> None:
    with locked(run):
        copy = RunDirectory(Path(shutil.copytree(run.path, tmp_path / "copy")))
        with locked(copy):
            pass
        assert run.lock_path.exists()


def test_of_many_jobs_that_find_a_lock_left_behind_one_takes_it(run: RunDirectory) -> None:
    with locked(run):
        rewrite(run, started="1")
        shutil.copy2(run.lock_path, run.path / "kept")
    (run.path / "kept").rename(run.lock_path)
    start, taken, refused = threading.Barrier(8), list[str](), list[str]()

    def take() -> None:
        start.wait()
        try:
            taken.append(run_lock._take(run.lock_path))
        except RunInUseError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1 and len(refused) == 7
    assert json.loads(run.lock_path.read_text())["token"] == taken[0]
    assert [path.name for path in run.path.glob(".lock*")] == []


def wait_until(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.01)


def test_a_job_gives_signs_of_life_and_ends_where_another_has_taken_its_run(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_lock, "SIGN_EVERY_S", 0.01)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), locked(run):
            os.utime(run.lock_path, (0, 0))
            wait_until(lambda: run.lock_path.stat().st_mtime > 0)
            rewrite(run, token="of the other", host="far-away")
            time.sleep(20)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "another job has taken over" in capsys.readouterr().out
    assert json.loads(run.lock_path.read_text())["token"] == "of the other"
