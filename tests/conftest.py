"""What all tests share: one thread each, no telemetry, and GPU tests only where a GPU is."""

import gc
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.s3_server import Server

os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    MLFLOW_DISABLE_TELEMETRY="true",
    RAY_USAGE_STATS_ENABLED="0",
)


VERDICT = pytest.StashKey[int]()

gc.disable()  # what the collection imports stays: searching it for garbage is a tenth of the time


def pytest_collection_finish() -> None:
    """Leave the packages to themselves; search for the tests' garbage."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` on a machine without a CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Keep the verdict for the end."""
    if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        session.config.stash[VERDICT] = exitstatus


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End at once: Ray's native threads can crash a process in which several clusters ran."""
    if VERDICT in config.stash:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[VERDICT])


@pytest.fixture(scope="module")
def s3() -> Iterator["Server"]:
    """An S3 server with an empty bucket `bucket`; the environment points to it."""
    from tests.s3_server import serve_s3

    with serve_s3() as server:
        yield server
