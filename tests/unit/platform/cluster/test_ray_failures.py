"""What a job does where Ray does not start, or goes away."""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from magicdistill.platform.cluster.ray_failures import (
    NUM_ATTEMPTS,
    RayError,
    explained_join,
    retried_start,
    token_kept,
    watched,
)

SLOW = "The current node timed out during startup. This could happen because ...\nmore"


class Start:
    """A start that fails so many times, as Ray's does on a busy machine."""

    def __init__(self, failures: int, error: type[Exception] = Exception) -> None:
        self.failures, self.error, self.calls = failures, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error(SLOW)
        return "context"


def test_a_slow_start_is_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    start = Start(failures=NUM_ATTEMPTS - 1)
    assert retried_start(start) == "context"
    assert capsys.readouterr().out.count("trying again") == start.calls - 1 == NUM_ATTEMPTS - 1


def test_a_start_that_never_succeeds_says_why_and_what_to_do() -> None:
    start = Start(failures=NUM_ATTEMPTS)
    with pytest.raises(RayError, match=r"timed out during startup.*free some") as failed:
        retried_start(start)
    assert start.calls == NUM_ATTEMPTS and "more" not in str(failed.value)


def test_a_wrong_option_is_not_tried_again() -> None:
    start = Start(failures=1, error=ValueError)
    with pytest.raises(ValueError, match="startup"):
        retried_start(start)
    assert start.calls == 1


def test_an_address_where_no_cluster_is_is_named_with_the_fix() -> None:
    with pytest.raises(RayError, match=r"cluster\.address 10\.0\.0\.1:6379: .*ray start --head"):
        explained_join(Start(1, ConnectionError), "10.0.0.1:6379")


def test_the_token_of_a_home_that_cannot_be_written_is_kept_for_this_user_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    with token_kept():
        path = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        assert len(path.read_text()) >= 32
        assert path.parent.stat().st_mode & 0o077 == 0
    assert not path.exists() and "RAY_AUTH_TOKEN_PATH" not in os.environ


def test_a_home_that_can_be_written_keeps_the_token(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    with token_kept():
        assert "RAY_AUTH_TOKEN_PATH" not in os.environ


def leave(*_: object) -> None:
    sys.exit(143)


def note_nothing() -> None:
    pass


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    monkeypatch.setattr("magicdistill.platform.cluster.ray_failures.LOOK_EVERY_S", 0.05)
    before = signal.signal(signal.SIGTERM, leave)
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            yield server
    finally:
        signal.signal(signal.SIGTERM, before)


def address(listener: socket.socket) -> str:
    return "{}:{}".format(*listener.getsockname())


def test_a_job_whose_control_service_is_gone_is_interrupted_with_a_sentence(
    listener: socket.socket,
) -> None:
    noted: list[int] = []
    with (
        pytest.raises(RayError, match=r"control service at 127\.0\.0\.1:\d+ is gone"),
        watched(address(listener), 0.2, lambda: noted.append(1)),
    ):
        listener.close()
        time.sleep(30)
    assert len(noted) >= 4


def test_errors_of_the_body_stay_what_they_are_while_the_service_answers(
    listener: socket.socket,
) -> None:
    raised: Callable[[], object] = {}.popitem
    with pytest.raises(KeyError), watched(address(listener), 0.2, note_nothing):
        time.sleep(0.3)
        raised()
