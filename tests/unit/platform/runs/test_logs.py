"""What a job prints of itself and of files that other processes write, and how Ctrl-C ends it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from magicdistill.models.paths import PathError
from magicdistill.platform.config.overrides import RecipeError
from magicdistill.platform.runs import logs
from magicdistill.platform.runs.file_polling import Tail, polling
from magicdistill.platform.runs.row_files import append_line


def test_a_tail_gives_whole_lines_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    tail = Tail(path)
    assert tail.lines() == []
    path.write_text("one\ntw")
    assert tail.lines() == ["one"]
    assert tail.lines() == []
    path.write_text("one\ntwo\nthree\n")
    assert tail.lines() == ["two", "three"]
    path.write_text("new\n")
    assert tail.lines() == ["new"]


def test_a_tail_begins_at_the_end_or_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old\n")
    assert Tail(path).lines() == []
    tail = Tail(path, from_start=True)
    assert tail.lines() == ["old"]
    other = path.with_name("other")
    other.write_text("longer than the old\n")
    other.replace(path)
    assert tail.lines() == ["longer than the old"]


def test_lines_of_others_are_said_with_the_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "progress.log"
    with logs.follow(path):
        path.write_text("cycle 1\ncycle 2\n")
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("] ")[2] for line in lines] == ["cycle 1", "cycle 2"]


def test_polling_acts_during_the_body_and_once_after_it() -> None:
    calls: list[float] = []
    with polling(lambda: calls.append(time.perf_counter()), 0.01, "counting"):
        time.sleep(0.1)
        during = len(calls)
        end = time.perf_counter()
    assert during > 0
    assert calls[-1] > end


def test_a_failure_of_the_action_is_raised_after_the_body() -> None:
    def fail() -> None:
        raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"), polling(fail, 0.01, "failing"):
        pass
    with pytest.raises(KeyboardInterrupt), polling(fail, 0.01, "failing"):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("error", "hinted"),
    [
        (KeyboardInterrupt(), True),
        (RuntimeError("a worker died"), True),
        (FileNotFoundError(2, "No such file", "shard.parquet"), True),
        (PermissionError(13, "Permission denied", "runs/x"), False),
        (OSError(30, "Read-only file system", "runs/x"), False),
        (OSError(28, "No space left on device", "runs/x"), True),
        (FileNotFoundError("data source folder x does not exist"), False),
        (RecipeError("model.vae: null"), False),
        (PathError("x", "a folder"), False),
    ],
)
def test_the_same_command_is_offered_where_it_can_help(
    error: BaseException, hinted: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(type(error)), logs.resume_hint("the same command"):
        raise error
    assert ("continue with the same command" in capsys.readouterr().out) == hinted


def test_a_disk_that_is_full_for_a_while_is_said_once_and_ends_neither_polling_nor_the_body(
    tmp_path: Path,
) -> None:
    path, said = tmp_path / "file", list[str]()
    path.symlink_to("/dev/full")
    with polling(lambda: append_line(path, "a row"), 0.01, "writing rows", said.append):
        time.sleep(0.1)
        path.unlink()
        time.sleep(0.1)
        path.rename(tmp_path / "rows")
        path.symlink_to("/dev/full")
        time.sleep(0.1)
    assert len(said) == 2  # once for each time that it was full, and nothing is raised
    assert all("writing rows failed and will be tried again" in line for line in said)
    assert "No space left on device" in said[0]
    assert set((tmp_path / "rows").read_text().splitlines()) == {"a row"}


JOB = """
import signal, subprocess, sys, time
sys.path[0] = {root!r}
signal.signal(signal.SIGINT, signal.default_int_handler)
from magicdistill.platform.runs import logs
logs.configure(verbose=False)
child = subprocess.Popen(["sleep", "60"], start_new_session=True)
with logs.resume_hint("--resume"):
    try:
        print(child.pid, flush=True)
        time.sleep(60)
    finally:
        print("ending", flush=True)
        time.sleep({ending_s})
        child.kill()
"""


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_says_interrupted_once_and_twice_it_ends_at_once_with_all_that_it_started(
    tmp_path: Path, times: int
) -> None:
    script = tmp_path / "job.py"
    root = str(Path(__file__).parents[4])
    script.write_text(JOB.format(root=root, ending_s=30 if times > 1 else 0))
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as job:
        assert job.stdout is not None
        child = int(job.stdout.readline())
        job.send_signal(signal.SIGINT)
        assert job.stdout.readline() == "ending\n"
        if times > 1:
            job.send_signal(signal.SIGINT)
        rest = job.stdout.read()  # communicate would lose what readline has read ahead
        job.wait(timeout=20)
    assert rest.rstrip().endswith("interrupted")
    assert ("--resume" in rest) == (times == 1)
    assert "Traceback" not in rest
    assert job.returncode == (130 if times > 1 else -signal.SIGINT)  # a shell says 130 of both
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
