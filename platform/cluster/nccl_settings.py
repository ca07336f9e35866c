"""How a hang of NCCL is noticed, recorded and ended: by torch's watchdog and Ray's detector.

The watchdog ends a process whose collective takes longer than `cluster.collective_timeout_s`, and
leaves its flight records: the last collectives of the rank, started and finished. Ray starts the
group again. Half-way there Ray's detector has written every rank's stacks and NCCL's own report.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TRACES = "nccl-traces"
"""The folder of the flight records in a run's folder, one file for each rank."""
NUM_RECORDS = 20_000
"""Collectives that a rank remembers; one cycle of 13B under ZeRO-3 has some thousand."""


def worker_variables(run: Path) -> dict[str, str]:
    """Return what torch reads in the environment of every worker of a run.

    Left alone, Ray would set the error handling to 1, by which a failed rank tears its
    communicators down, which may hang in its turn; torch's own default is 3, to end the process.
    """
    return {
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_NCCL_ENABLE_TIMING": "1",
        "TORCH_FR_BUFFER_SIZE": str(NUM_RECORDS),
        "TORCH_FR_DUMP_TEMP_FILE": str(run / TRACES / "rank-"),
    }


def detector_variables(timeout_s: int) -> dict[str, str]:
    """Return what Ray Train reads in the environment of the job for its detector of hangs.

    It observes and leaves the end to torch's watchdog, whose records would be lost otherwise.
    """
    return {
        "RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR": "1",
        "RAY_TRAIN_NCCL_RAS_ACTION": "observe",
        "RAY_TRAIN_NCCL_RAS_CONFIRM_DURATION_S": str(timeout_s / 2),
    }


@contextmanager
def in_environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables of this process while the body runs; those that the user has set stay."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
