"""What became of workers that failed: their ranks, their causes, and where to read on."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from magicdistill.platform.runs.logs import ExplainedError
from magicdistill.platform.runs.run_directory import RunDirectory


class TrainingError(ExplainedError):
    """Says which workers failed, by rank, each with its cause."""


@contextmanager
def recorded_failure(run: RunDirectory, rank: int) -> Iterator[None]:
    """Add a worker's traceback to the run's errors, also where Ray starts the workers again."""
    try:
        yield
    except Exception:
        with run.errors_path.open("a") as file:
            file.write(f"rank {rank}\n{traceback.format_exc()}\n")
        raise


@contextmanager
def explained_failure(run: RunDirectory) -> Iterator[None]:
    """Turn the failure of a worker group into one that names ranks, causes and where to read on.

    Raises:
        TrainingError: if workers failed.
    """
    from ray.train.v2.api.exceptions import WorkerGroupError

    try:
        yield
    except WorkerGroupError as error:
        causes = [
            f"  rank {rank}: {type(cause).__name__}: {next(iter(str(cause).splitlines()), '')}"
            for rank, cause in sorted(error.worker_failures.items())
        ]
        where = f"tracebacks: {run.errors_path}"
        raise TrainingError("\n".join(["training failed", *causes, where])) from error
