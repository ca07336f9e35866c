import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from magicdistill.data_pipeline.media.sandbox import Sandbox, progress
from magicdistill.data_pipeline.media.video import decode
from tests.odd_videos import encode


def test_a_call_returns_the_value_and_the_process_is_kept():
    with Sandbox(timeout_s=30.0) as sandbox:
        assert sandbox.call(abs, -3).value == 3
        assert sandbox.call(os.getpid).value == sandbox.call(os.getpid).value != os.getpid()


def test_an_exception_becomes_a_reason_without_a_second_attempt():
    with Sandbox(timeout_s=30.0) as sandbox:
        before = sandbox.call(os.getpid).value
        assert sandbox.call(int, "no number").failure.startswith("ValueError: invalid literal")
        assert sandbox.call(os.getpid).value == before


def test_a_crash_becomes_a_reason_and_the_next_call_works():
    with Sandbox(timeout_s=30.0, num_attempts=2) as sandbox:
        assert sandbox.call(os.abort).failure == "crashed with SIGABRT (2 attempts)"
        assert sandbox.call(abs, -3).value == 3


def test_an_exit_is_reported_with_its_code():
    with Sandbox(timeout_s=30.0, num_attempts=1) as sandbox:
        assert "exited with code 3" in sandbox.call(os._exit, 3).failure


def test_a_hang_ends_at_the_time_out():
    with Sandbox(timeout_s=0.3, num_attempts=2) as sandbox:
        start_s = time.monotonic()
        assert sandbox.call(time.sleep, 60).failure == "timed out after 0.3 s (2 attempts)"
        assert time.monotonic() - start_s < 20
        assert sandbox.call(abs, -3).value == 3


def work(num_steps: int, pause_s: float) -> int:
    """Come forward in steps, then hang after twenty of them."""
    for _ in range(num_steps):
        time.sleep(pause_s)
        progress()
    time.sleep(0 if num_steps < 20 else 60)
    return num_steps


def test_long_work_that_comes_forward_takes_its_time_and_a_hang_after_it_does_not():
    with Sandbox(timeout_s=0.5, num_attempts=1) as sandbox:
        sandbox.start()
        assert sandbox.call(work, 12, 0.1).value == 12
        assert sandbox.call(work, 20, 0.01).failure == "timed out after 0.5 s (1 attempts)"
        assert sandbox.call(work, 1, 5.0).failure == "timed out after 0.5 s (1 attempts)"
    progress()  # outside of a sandbox nothing happens


def watch(path: Path, pause_s: float) -> int:
    """Look at every frame of a video for a while."""
    return sum(1 for _ in decode(path) if time.sleep(pause_s) is None)


def test_a_film_may_last_as_long_as_its_frames_come(tmp_path: Path):
    film = encode(tmp_path / "film.mp4", 60)
    with Sandbox(timeout_s=0.8, num_attempts=1) as sandbox:
        sandbox.start()
        assert sandbox.call(watch, film, 0.03).value == 60
        assert "timed out" in sandbox.call(watch, film, 3.0).failure


def test_every_new_process_loads_first_and_has_its_own_time_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with Sandbox(30.0, 1, load=partial(os.chdir, str(tmp_path))) as sandbox:
        assert sandbox.call(os.getcwd).value == str(tmp_path)
        assert sandbox.call(os.abort).failure
        assert sandbox.call(os.getcwd).value == str(tmp_path)
    with pytest.raises(RuntimeError, match="cannot load what it needs: FileNotFoundError"):
        Sandbox(30.0, load=partial(os.chdir, "/nowhere")).start()
    monkeypatch.setattr("magicdistill.data_pipeline.media.sandbox.LOADING_TIMEOUT_S", 0.3)
    with pytest.raises(RuntimeError, match=r"cannot load .*timed out after 0\.3 s"):
        Sandbox(30.0, load=partial(time.sleep, 60)).call(abs, -3)


def test_output_of_a_decoder_does_not_disturb_the_replies():
    with Sandbox(timeout_s=30.0) as sandbox:
        assert sandbox.call(os.write, 1, b"noise on standard output").value == 24
        assert sandbox.call(abs, -3).value == 3


def test_the_child_ends_with_a_parent_that_is_killed():
    script = (
        "import os, time\n"
        "from magicdistill.data_pipeline.media.sandbox import Sandbox\n"
        "print(Sandbox(60.0).call(os.getpid).value, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child_id = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline_s = time.monotonic() + 10
    while _is_alive(child_id):
        assert time.monotonic() < deadline_s, "the decoder outlived its parent"
        time.sleep(0.05)


def _is_alive(process_id: int) -> bool:
    try:
        with open(f"/proc/{process_id}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_interrupt_of_the_terminal_does_not_stop_the_child():
    with Sandbox(timeout_s=30.0) as sandbox:
        child_id = sandbox.call(os.getpid).value
        os.kill(child_id, signal.SIGINT)
        assert sandbox.call(os.getpid).value == child_id
