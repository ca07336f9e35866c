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


LONGEST = (
    "test_sampling.py",
    "test_planning.py",
    "test_comparison.py",
    "test_cli.py",
    "test_stages_scorers.py",
    "test_distill.py",
    "test_survival_layouts.py",
    "test_curate.py",
    "test_streams.py",
    "test_health.py",
    "test_exams.py",
    "test_zero3.py",
    "test_curate_scores.py",
)
VERDICT = pytest.StashKey[int]()

gc.disable()  # what the collection imports stays: searching it for garbage is a tenth of the time


def pytest_collection_finish() -> None:
    """Leave the packages to themselves; search for the tests' garbage."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put unit tests in front, the longest files first; skip `gpu` where no CUDA device is."""
    items.sort(key=_place)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _place(item: pytest.Item) -> tuple[bool, int]:
    """Return where a test stands: no process is to be left with a long file at the end."""
    name = item.path.name
    return "integration" in item.path.parts, (*LONGEST, name).index(name)


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
