"""A failure is told once, with its rank, its node, its cause and what happens next."""

from pathlib import Path

import pytest
import torch
from ray.exceptions import ActorDiedError
from ray.train import FailureConfig
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.exceptions import WorkerGroupError

from magicdistill.platform.checkpoints.checkpoint_folder import DiskFullError
from magicdistill.platform.cluster.ranks import OtherRankError
from magicdistill.platform.cluster.restarts import RestartReporter
from magicdistill.platform.cluster.train_controller import FinalFailures
from magicdistill.platform.cluster.worker_failures import (
    GpuMemoryError,
    describe_failures,
    explained_memory,
    lost_nodes,
    record_nodes,
    recorded_failure,
)
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.runs.run_directory import RunDirectory
from tests.lost_workers import lost_worker

LOST = RuntimeError("[gloo/transport/tcp/pair.cc:554] Connection closed by peer [127.0.0.1]:4")
FULL = DiskFullError(28, "no space left for a checkpoint", "/runs/a")


@pytest.fixture
def run(tmp_path: Path, recipe: Recipe) -> RunDirectory:
    run = RunDirectory.create(tmp_path / "runs", recipe)
    record_nodes(run, ["10.0.0.1 (aa)", "10.0.0.1 (aa)", "10.0.0.2 (bb)"])
    return run


@pytest.mark.parametrize(
    ("failures", "lines"),
    [
        (
            {0: LOST, 1: LOST, 2: lost_worker()},
            ["rank 2 on 10.0.0.2 (bb): died: its worker process has died. Exit: 9"],
        ),
        (
            {0: FULL, 1: OtherRankError("rank 0 failed with DiskFullError"), 2: LOST},
            [f"rank 0 on 10.0.0.1 (aa): DiskFullError: {FULL}"],
        ),
        (
            {2: ValueError("other\ndetails"), 1: ValueError("one"), 0: ValueError("one")},
            [
                "ranks 0 on 10.0.0.1 (aa), 1 on 10.0.0.1 (aa): ValueError: one",
                "rank 2 on 10.0.0.2 (bb): ValueError: other",
            ],
        ),
        ({1: LOST}, [f"rank 1 on 10.0.0.1 (aa): RuntimeError: {LOST}"]),
        ({7: ValueError("one")}, ["rank 7: ValueError: one"]),
    ],
)
def test_causes_are_told_with_ranks_and_nodes_and_their_consequences_are_not(
    run: RunDirectory, failures: dict[int, Exception], lines: list[str]
) -> None:
    assert describe_failures(run, failures) == lines


def test_restarts_say_from_which_cycle_they_go_on_and_how_many_are_left(run: RunDirectory) -> None:
    newest = iter([0, 4])
    noted: list[int] = []
    reporter = RestartReporter(run, 2, lambda: next(newest), lambda found: noted.extend(found))
    for failure in (ValueError("one"), ValueError("two"), ValueError("three")):
        record_nodes(run, ["10.0.0.1 (aa)"])  # as a group does that starts
        reporter.after_exception(None, {0: failure})
        reporter.after_exception(None, {0: failure})  # Ray may ask again about the same group
    assert noted == [0, 0, 0]
    assert run.progress_path.read_text().splitlines() == [
        "rank 0 on 10.0.0.1 (aa): ValueError: one; the workers start again from the start, for "
        "nothing is saved yet; restarts left after this one: 1",
        "rank 0 on 10.0.0.1 (aa): ValueError: two; the workers start again from cycle 4; "
        "restarts left after this one: 0",
        "rank 0 on 10.0.0.1 (aa): ValueError: three; no restart is left of 2 "
        "(cluster.max_failures)",
    ]


def test_a_node_that_is_taken_away_costs_no_restart(run: RunDirectory) -> None:
    death = ActorDiedError()
    death._preempted = True
    reporter = RestartReporter(run, 0, lambda: 3, lambda failures: None)
    reporter.after_exception(None, {1: WorkerHealthCheckFailedError("failed", death)})
    assert "start again from cycle 3; not counted" in run.progress_path.read_text()


def test_a_full_gpu_is_told_with_its_rank_its_peak_and_what_needs_less(run: RunDirectory) -> None:
    with pytest.raises(GpuMemoryError) as raised, explained_memory():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
    (line,) = describe_failures(run, {2: raised.value, 0: LOST})
    assert line.startswith("rank 2 on 10.0.0.2 (bb): GpuMemoryError: the GPU's memory is full")
    assert "0.0 GiB at the peak (CUDA out of memory. Tried to allocate 2.00 GiB.)" in line
    assert "schedule.num_micro_batches or cluster.sequence_parallel" in line
    reporter = RestartReporter(run, 2, lambda: 4, lambda failures: None)
    reporter.after_exception(None, {2: raised.value})
    assert "would fail so again, and are not started any more" in run.progress_path.read_text()


def test_only_what_would_repeat_itself_is_not_tried_again() -> None:
    policy = FinalFailures(FailureConfig(max_failures=1))
    full = WorkerGroupError("failed", {0: LOST, 1: GpuMemoryError("full")})
    assert policy.make_decision(full) is FailureDecision.RAISE
    lost = WorkerGroupError("failed", {0: LOST, 1: lost_worker()})
    assert policy.make_decision(lost) is FailureDecision.RETRY
    assert policy.make_decision(lost) is FailureDecision.RAISE


@pytest.mark.parametrize(
    ("failures", "nodes"),
    [
        ({0: LOST, 2: lost_worker()}, {("10.0.0.2", "bb")}),
        ({0: lost_worker(), 1: lost_worker()}, {("10.0.0.1", "aa")}),
        ({2: RuntimeError("CUDA error: uncorrectable ECC error")}, {("10.0.0.2", "bb")}),
        ({0: ValueError("a mistake"), 1: FULL}, set()),
        ({1: GpuMemoryError("CUDA error: out of memory")}, set()),
        ({7: lost_worker()}, set()),
        ({0: lost_worker(), 1: LOST, 2: lost_worker()}, set()),  # a hang that torch has ended
    ],
)
def test_a_node_has_failed_where_a_process_or_a_gpu_was_lost(
    run: RunDirectory, failures: dict[int, Exception], nodes: set[tuple[str, str]]
) -> None:
    assert lost_nodes(run, failures) == nodes


def test_a_failure_that_finds_no_room_for_its_traceback_is_still_the_one_that_is_raised(
    run: RunDirectory,
) -> None:
    run.errors_path.symlink_to("/dev/full")
    run.progress_path.symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match="for a checkpoint"), recorded_failure(run, 0):
        run.say("a line that finds no room either")
        raise FULL
