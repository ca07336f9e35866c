"""What goes wrong with Ray itself: a home that cannot be written, a slow start, a lost cluster."""

import os
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from magicdistill.platform.runs import logs
from magicdistill.platform.runs.logs import ExplainedError

T = TypeVar("T")
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
NUM_ATTEMPTS = 3
"""How often a local Ray is started before a job gives up."""
LOOK_EVERY_S = 1.0
LOCAL_PATIENCE_S, JOINED_PATIENCE_S = 3.0, 45.0
"""How long the cluster's control service may refuse connections: a head node that others share may
be starting again, and Ray's own libraries end the process after a minute."""


class RayError(ExplainedError):
    """Ray did not start or went away; the message says what to do."""


@contextmanager
def token_kept() -> Iterator[None]:
    """Keep the token of a local Ray in a folder of its own where the home cannot be written.

    The folder lives as long as the body, and can be read by this user alone.
    """
    home = Path.home() / ".ray"
    if any(name in os.environ for name in TOKEN_VARIABLES) or _can_hold_token(home):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="magicdistill-token-") as folder:
        path = Path(folder) / "auth_token"
        path.write_text(secrets.token_hex(32))
        logs.say(f"{home} cannot be written; Ray's token is in {path}")
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
        try:
            yield
        finally:
            del os.environ["RAY_AUTH_TOKEN_PATH"]


def _can_hold_token(folder: Path) -> bool:
    if (folder / "auth_token").is_file():
        return True
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def retried_start(start: Callable[[], T]) -> T:
    """Start a local Ray by `start`, which leaves nothing behind where it fails.

    Ray gives itself 30 s, which a machine that does other work can exceed. Raises RayError where
    no attempt succeeds.
    """
    for _ in range(NUM_ATTEMPTS - 1):
        try:
            return start()
        except (ValueError, TypeError):  # wrong options, not a busy machine
            raise
        except Exception as error:  # Ray raises bare exceptions here
            logs.say(f"Ray did not start ({_first_line(error)}); trying again")
    try:
        return start()
    except Exception as error:
        raise RayError(
            f"Ray did not start in {NUM_ATTEMPTS} attempts ({_first_line(error)}): the machine is "
            "too busy, or short of memory or disk space; free some and give the command again"
        ) from error


def explained_join(start: Callable[[], T], address: str) -> T:
    """Join a cluster; raises RayError where none answers."""
    try:
        return start()
    except Exception as error:  # Ray raises errors of sockets, of RPCs and bare ones
        raise RayError(
            f"cluster.address {address}: no Ray cluster can be joined there "
            f"({_first_line(error)}); start one with ray start --head, or leave the address out"
        ) from error


@contextmanager
def watched(address: str, patience_s: float, note_started: Callable[[], None]) -> Iterator[None]:
    """Interrupt the main thread by SIGTERM where the cluster's control service is gone.

    What the body raises then, whatever it is, becomes a RayError. Without a watch Ray's libraries
    end the process after a minute, and no job can say how it is continued.

    Args:
        address: host and port of the service.
        patience_s: how long connections may be refused.
        note_started: notes the cluster's processes. It is called when a connection is refused, as
            those of a Ray that ends by itself soon after are nobody's children.
    """
    lost, done = threading.Event(), threading.Event()

    def watch() -> None:
        refused_s = 0.0
        while not done.wait(LOOK_EVERY_S):
            if _answers(address):
                refused_s = 0.0
                continue
            note_started()
            refused_s += LOOK_EVERY_S
            if refused_s >= patience_s:
                lost.set()
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    except BaseException as error:
        if lost.is_set():
            raise RayError(
                f"Ray's control service at {address} is gone: it was stopped, or the machine ran "
                "out of memory"
            ) from error
        raise
    finally:
        done.set()
        thread.join()


def _answers(address: str) -> bool:
    """Tell whether connections are taken, which the kernel does also for a busy process."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=LOOK_EVERY_S).close()
    except OSError:
        return False
    return True


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
