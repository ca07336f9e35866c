"""What a job prints: progress lines with the time, without the noise of the frameworks."""

import errno
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from magicdistill.models.paths import PathError
from magicdistill.platform.config.overrides import RecipeError
from magicdistill.platform.runs.file_polling import Tail, polling
from magicdistill.platform.runs.termination import end_in_order

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

_started_s = time.monotonic()


class ExplainedError(RuntimeError):
    """An error whose message is all that a user needs: it ends a job without a traceback."""


def configure(*, verbose: bool) -> None:
    """Silence the frameworks in this process and those it starts, unless `verbose`.

    What the user has set in the environment stays. From now on SIGTERM ends the process in order.
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


def environment(*, verbose: bool) -> dict[str, str]:
    """Return the environment variables that carry the choice to other processes."""
    return NO_TELEMETRY | ({VERBOSE: "1"} if verbose else QUIET)


def is_verbose() -> bool:
    """Tell whether this process, or the one that started it, was asked to be verbose."""
    return bool(os.environ.get(VERBOSE))


def say(message: str) -> None:
    """Print a progress line with the time since the job began."""
    minutes, seconds = divmod(int(time.monotonic() - _started_s), 60)
    print(f"[{minutes:3d}:{seconds:02d}] {message}", flush=True)


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
    if issubclass(kind, KeyboardInterrupt):
        say("interrupted")
    elif (issubclass(kind, ExplainedError) or is_mistake(error)) and not is_verbose():
        say(str(error))
    else:
        sys.__excepthook__(kind, error, traceback)
