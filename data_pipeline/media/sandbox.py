"""A child process for work on untrusted files: a crash or a hang costs one file, not the run."""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import magicdistill

IMPORT_ROOT = Path(str(magicdistill.__file__)).parent.parent
LOADING_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Outcome:
    """The value of a call, or the reason why there is none."""

    value: Any = None
    failure: str = ""


class Sandbox:
    """Calls functions in a persistent child process, which is replaced when it dies.

    Video decoders are C code that damaged files can crash or hang. The child sets a kernel timer
    (SIGALRM) for each call and keeps the default action, which ends the process: that works even
    while C code holds the interpreter's lock, and even if the parent is gone. A function that
    comes forward says so by `progress`, which sets the timer again: long work takes its time.
    """

    def __init__(
        self, timeout_s: float, num_attempts: int = 2, load: Callable[[], Any] | None = None
    ) -> None:
        """Set limits; the process starts with the first call.

        Args:
            timeout_s: seconds that a call may take, or that may pass after a sign of progress.
            num_attempts: number of times that one call is tried if it crashes or times out.
            load: function that every new process calls first, such as one that loads models; its
                time limit is LOADING_TIMEOUT_S.
        """
        self.timeout_s = timeout_s
        self.num_attempts = num_attempts
        self._load = load
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: BinaryIO | None = None

    def call(self, function: Callable[..., Any], *args: Any) -> Outcome:
        """Call a module-level function in the child; return its value or the reason of its failure.

        An exception of the function is final; a crash or a time-out is tried again, up to
        `num_attempts` times in all.

        Raises:
            RuntimeError: if a new child cannot load.
        """
        outcome = Outcome()
        for _ in range(self.num_attempts):
            self.start()
            outcome = self._ask(function, args, self.timeout_s)
            if self._process:
                return outcome
        return Outcome(failure=f"{outcome.failure} ({self.num_attempts} attempts)")

    def start(self) -> None:
        """Start the process unless it runs, and let it load.

        Raises:
            RuntimeError: if it cannot load.
        """
        if self._process:
            return
        self._open()
        if self._load:
            outcome = self._ask(self._load, (), LOADING_TIMEOUT_S)
            if outcome.failure:
                self.close()
                raise RuntimeError(f"a new process cannot load what it needs: {outcome.failure}")

    def close(self) -> None:
        """End the child process; a later call starts a new one."""
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None
        if self._stderr:
            self._stderr.close()
            self._stderr = None

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> None:
        search = [str(IMPORT_ROOT), os.environ.get("PYTHONPATH", "")]
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search))},
        )

    def _ask(
        self, function: Callable[..., Any], args: tuple[Any, ...], timeout_s: float
    ) -> Outcome:
        """Return the child's answer, or its cause of death; a dead child is closed."""
        process = self._process
        assert process and process.stdin and process.stdout
        try:
            process.stdin.write(pickle.dumps((function, args, timeout_s), protocol=5))
            process.stdin.flush()
            return pickle.load(process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            failure = self._cause_of_death(process, timeout_s)
            self.close()
            return Outcome(failure=failure)

    def _cause_of_death(self, process: "subprocess.Popen[bytes]", timeout_s: float) -> str:
        code = process.wait()
        if code == -signal.SIGALRM:
            return f"timed out after {timeout_s:g} s"
        if code < 0:
            return f"crashed with {signal.Signals(-code).name}"
        assert self._stderr
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return f"exited with code {code}: {lines[-1] if lines else 'no message'}"


def progress() -> None:
    """Let the time limit of the present call begin again; outside of a sandbox do nothing."""
    if _call.timeout_s:
        signal.setitimer(signal.ITIMER_REAL, _call.timeout_s)


class _Call:
    """The call that this process answers."""

    timeout_s = 0.0


_call = _Call()


def serve() -> None:
    """Answer pickled calls on standard input until it closes."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the parent handles it
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # decoders print to standard output, which would corrupt the replies
    while True:
        try:
            function, args, timeout_s = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        _call.timeout_s = timeout_s
        progress()
        outcome = _attempt(function, args)
        _call.timeout_s = 0.0
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            pickle.dump(outcome, replies, protocol=5)
            replies.flush()
        except BrokenPipeError:  # the parent is gone
            os._exit(0)


def _attempt(function: Callable[..., Any], args: tuple[Any, ...]) -> Outcome:
    try:
        return Outcome(value=function(*args))
    except Exception as error:  # any error that a damaged file causes is recorded as its reason
        message = str(error).strip().splitlines()
        return Outcome(failure=f"{type(error).__name__}: {message[0] if message else ''}")


if __name__ == "__main__":
    # As __main__ this module's Outcome would be __main__.Outcome, which the parent cannot unpickle.
    from magicdistill.data_pipeline.media.sandbox import serve as serve_importable

    serve_importable()
