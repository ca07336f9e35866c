"""What runs after a cycle runs in one order, and some of it on the first rank alone."""

from pathlib import Path

from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.training.callbacks import (
    Checkpointer,
    HealthCheck,
    ProducerThroughput,
    ValidationSamples,
    of_rank,
)
from magicdistill.platform.training.metrics_writer import MetricsWriter
from magicdistill.platform.training.worker import Worker
from tests.tiny_run import tiny_recipe, write_cache

ON_ALL_RANKS = [ValidationSamples, HealthCheck, Checkpointer]


def test_samples_come_before_the_metrics_are_written_judged_and_saved(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, tiny_recipe(batch_size=2))
    worker = Worker(run, write_cache(tmp_path / "data"), None, rank=0, world_size=1)
    assert [type(one) for one in worker.callbacks] == [
        ValidationSamples,
        ProducerThroughput,
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
    assert worker.checkpoints.names() == ["cycle-0000002"]
    worker.checkpointer(5, {})
    assert worker.checkpoints.names()[-1] == "cycle-0000005"
