"""A failure is told once, with its rank, its node, its cause and what happens next."""

from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from magicdistill.platform.checkpoints.checkpoint_folder import DiskFullError
from magicdistill.platform.cluster.ranks import OtherRankError
from magicdistill.platform.cluster.restarts import RestartReporter
from magicdistill.platform.cluster.worker_failures import (
    describe_failures,
    record_nodes,
    recorded_failure,
)
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.runs.run_directory import RunDirectory

LOST = RuntimeError("[gloo/transport/tcp/pair.cc:554] Connection closed by peer [127.0.0.1]:4")
FULL = DiskFullError(28, "no space left for a checkpoint", "/runs/a")


@pytest.fixture
def run(tmp_path: Path, recipe: Recipe) -> RunDirectory:
    run = RunDirectory.create(tmp_path / "runs", recipe)
    record_nodes(run, ["10.0.0.1 (aa)", "10.0.0.1 (aa)", "10.0.0.2 (bb)"])
    return run


def killed() -> Exception:
    death = ActorDiedError()
    death.error_msg += "\n\tpid: 7\nThe actor is dead because its worker process has died. Exit: 9"
    return WorkerHealthCheckFailedError("A worker health check failed.", death)


@pytest.mark.parametrize(
    ("failures", "lines"),
    [
        (
            {0: LOST, 1: LOST, 2: killed()},
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
    reporter = RestartReporter(run, 2, lambda: next(newest))
    for failure in (ValueError("one"), ValueError("two"), ValueError("three")):
        record_nodes(run, ["10.0.0.1 (aa)"])  # as a group does that starts
        reporter.after_exception(None, {0: failure})
        reporter.after_exception(None, {0: failure})  # Ray may ask again about the same group
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
    reporter = RestartReporter(run, 0, lambda: 3)
    reporter.after_exception(None, {1: WorkerHealthCheckFailedError("failed", death)})
    assert "start again from cycle 3; not counted" in run.progress_path.read_text()


def test_a_failure_that_finds_no_room_for_its_traceback_is_still_the_one_that_is_raised(
    run: RunDirectory,
) -> None:
    run.errors_path.symlink_to("/dev/full")
    run.progress_path.symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match="for a checkpoint"), recorded_failure(run, 0):
        run.say("a line that finds no room either")
        raise FULL
