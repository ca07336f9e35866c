"""What a job prints: progress lines with the time, without the noise of the frameworks."""

import errno
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

import psutil

from magicdistill.data_pipeline import console
from magicdistill.models.paths import PathError
from magicdistill.platform.config.overrides import RecipeError
from magicdistill.platform.runs.file_polling import Tail, polling
from magicdistill.platform.runs.termination import end_in_order

WARNINGS = ("interrupted", "starving", "stopped", "unhealthy", "warning")
"""First words of lines that are coloured on a terminal."""
VERBOSE = "MAGICDISTILL_VERBOSE"
NO_TELEMETRY = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
}
QUIET = {
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TRANSFORMERS_VERBOSITY": "error",
}
NOISY = (
    "DeepSpeed",
    "alembic",
    "matplotlib",
    "mlflow",
    "ray",
    "ray.data",
    "ray.train",
    "torch.distributed",
    "urllib3",
)

FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
"""Errors of a file that a user may not read or write."""


class ExplainedError(RuntimeError):
    """An error whose message is all that a user needs: it ends a job without a traceback."""


def configure(*, verbose: bool) -> None:
    """Silence the frameworks in this process and those it starts, unless `verbose`.

    What the user has set in the environment stays. From now on SIGTERM ends the process in order
    and, in a main thread, a second Ctrl-C ends it at once.
    """
    end_in_order()
    os.environ.pop(VERBOSE, None)
    for name, value in environment(verbose=verbose).items():
        os.environ.setdefault(name, value)
    sys.excepthook = _explain
    if not verbose:
        warnings.simplefilter("ignore")
        for name in NOISY:
            logging.getLogger(name).setLevel(logging.ERROR)
    _take_ctrl_c()


def environment(*, verbose: bool) -> dict[str, str]:
    """Return the environment variables that carry the choice to other processes."""
    return NO_TELEMETRY | ({VERBOSE: "1"} if verbose else QUIET)


def is_verbose() -> bool:
    """Tell whether this process, or the one that started it, was asked to be verbose."""
    return bool(os.environ.get(VERBOSE))


def say(message: str) -> None:
    """Print a progress line with the time."""
    console.write(message, console.YELLOW if message.lstrip().startswith(WARNINGS) else None)


@contextmanager
def working(message: str) -> Iterator[None]:
    """Say what begins and, on a terminal, how long it has been going on while the body runs."""
    say(message)
    with console.clock():
        yield


@contextmanager
def ending_with_its_reader() -> Iterator[None]:
    """End the process quietly where nobody reads what the body prints any more, as in `| head`."""
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        yield
    finally:
        sys.stdout.flush()
        signal.signal(signal.SIGPIPE, before)


@contextmanager
def resume_hint(way: str) -> Iterator[None]:
    """Say how to continue where the body is stopped, unless by a mistake of the user's."""
    try:
        yield
    except BaseException as error:
        console.close_bars()
        if not is_mistake(error):
            say(f"stopped; continue with {way}")
        raise


def is_mistake(error: BaseException) -> bool:
    """Tell an error about what the user asked for: the same command would end in it again.

    So do files that may not be read or written, but not those that the system itself does not
    find, with an error number: a worker may have lost them.
    """
    if isinstance(error, FileNotFoundError):
        return error.errno is None
    if isinstance(error, OSError):
        return error.errno in FORBIDDEN
    return isinstance(error, RecipeError | PathError)


@contextmanager
def follow(path: Path) -> Iterator[None]:
    """Say, while the body runs, the lines that other processes add to a file."""
    tail = Tail(path)

    def show() -> None:
        for line in tail.lines():
            say(line)

    with polling(show, 0.2, "showing progress"):
        yield


def _explain(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    console.close_bars()
    if issubclass(kind, KeyboardInterrupt):
        say("interrupted")
    elif (issubclass(kind, ExplainedError) or is_mistake(error)) and not is_verbose():
        console.write(str(error), console.RED)
    else:
        sys.__excepthook__(kind, error, traceback)


def _take_ctrl_c() -> None:
    """Handle Ctrl-C, except in a thread or where it is ignored or handled otherwise."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    """Let the job end in good order, and a second Ctrl-C end it at once."""
    signal.signal(signal.SIGINT, _leave_at_once)
    raise KeyboardInterrupt


def _leave_at_once(signum: int, frame: FrameType | None) -> NoReturn:
    """End this process and all that it started; what is worth keeping is written already."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    os.write(1, b"\ninterrupted\n")  # print may be what was interrupted
    os._exit(128 + signum)
