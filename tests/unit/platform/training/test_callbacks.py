"""What runs after a cycle runs in one order, and some of it on the first rank alone."""

import shutil
import time
from pathlib import Path

import pytest

from magicdistill.data_pipeline.progress import format_duration, format_pace
from magicdistill.models.profiling import StepTimer
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.training.callbacks import (
    Checkpointer,
    HealthCheck,
    ProducerThroughput,
    ValidationSamples,
    of_rank,
)
from magicdistill.platform.training.metrics_writer import MetricsWriter, format_cycle
from magicdistill.platform.training.stragglers import Stragglers
from magicdistill.platform.training.worker import Worker
from tests.tiny_run import tiny_recipe, write_cache

ON_ALL_RANKS = [ValidationSamples, Stragglers, HealthCheck, Checkpointer]


def test_samples_come_before_the_metrics_are_written_judged_and_saved(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, tiny_recipe(batch_size=2))
    worker = Worker(run, write_cache(tmp_path / "data"), None, rank=0, world_size=1)
    assert [type(one) for one in worker.callbacks] == [
        ValidationSamples,
        ProducerThroughput,
        Stragglers,
        MetricsWriter,
        HealthCheck,
        Checkpointer,
    ]
    assert [type(one) for one in of_rank(1, worker.callbacks)] == ON_ALL_RANKS


def test_a_due_checkpoint_is_saved_and_no_other(tmp_path: Path) -> None:
    recipe = tiny_recipe(2, schedule={"checkpoint_every": 2, "num_cycles": 5})
    run = RunDirectory.create(tmp_path, recipe)
    worker = Worker(run, write_cache(tmp_path / "data"), None, rank=0, world_size=1)
    for cycle in (1, 2, 3):
        worker.checkpointer(cycle, {})
    worker.checkpoints.wait()
    assert worker.checkpoints.names() == ["cycle-0000002"]
    worker.checkpointer(5, {})
    assert worker.checkpoints.names()[-1] == "cycle-0000005"


def test_a_checkpoint_that_fails_beside_the_training_ends_it_at_the_next_cycle(
    tmp_path: Path,
) -> None:
    recipe = tiny_recipe(2, schedule={"checkpoint_every": 2, "num_cycles": 5})
    run = RunDirectory.create(tmp_path, recipe)
    worker = Worker(run, write_cache(tmp_path / "data"), None, rank=0, world_size=1)
    shutil.rmtree(run.checkpoints)
    run.checkpoints.symlink_to("/dev/null")  # where no folder can be made
    worker.checkpointer(2, {})
    while not worker.checkpoints.has_failed():
        time.sleep(0.01)
    with pytest.raises(NotADirectoryError, match="checkpoints"):
        worker.checkpointer(3, {})


def test_the_pace_is_right_from_the_first_cycle_on_and_leaves_the_start_out(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, tiny_recipe(2))
    schedule = run.recipe().schedule.model_copy(update={"num_cycles": 40})
    step_timer = StepTimer()
    stragglers = Stragglers(schedule, step_timer)
    writer = MetricsWriter(run, schedule, stragglers)
    time.sleep(0.3)  # what a worker does before it trains
    with step_timer.running():
        for cycle in (1, 2, 3):
            time.sleep(0.05)
            metrics = {"critic/fake_score": 0.5}
            stragglers(cycle, metrics)
            writer(cycle, metrics)
    seconds = [row["seconds_per_cycle"] for row in run.metrics()]
    assert all(0.05 <= one < 0.25 for one in seconds)
    assert "ranks/" not in run.progress_path.read_text()
    first, *others = run.progress_path.read_text().splitlines()
    assert first.startswith(f"cycle 1/40   {format_pace(seconds[0])}, ")
    assert format_duration(39 * seconds[0]) + " left" in first
    assert [line.split()[1] for line in others] == ["2/40"]


TERMS = ["critic/discriminator 1.389", "critic/fake_score 0.09772", "generator/dmd -0.09204"]


def test_the_lines_of_cycles_have_the_same_columns() -> None:
    early = format_cycle(9, 200, "8.50 s each, 27 min 03 s left", TERMS)
    late = format_cycle(200, 200, "10.1 s each, 0 s left", [f"{t.split()[0]} 1" for t in TERMS])
    assert early.startswith("cycle 9/200    8.50 s each")
    for term in TERMS:
        name = term.split()[0]
        assert early.index(name) == late.index(name)
