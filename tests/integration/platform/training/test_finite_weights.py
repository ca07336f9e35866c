"""No weights that are no finite numbers are saved or exported, and an older checkpoint helps."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.platform.checkpoints.engine_state import ShardPlace, owners
from magicdistill.platform.launch.run_job import go_back
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.training.finite_weights import demand_finite
from magicdistill.platform.training.health import UnhealthyError
from magicdistill.platform.training.worker import Worker
from tests.tiny_run import tiny_recipe, write_cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> AnyPath:
    return write_cache(tmp_path_factory.mktemp("data"))


def create(folder: Path, **schedule: Any) -> RunDirectory:
    fields = {"num_cycles": 2, "checkpoint_every": 1, "keep_checkpoints": 3, **schedule}
    model = {"preset": "nano"}
    return RunDirectory.create(folder, tiny_recipe(2, schedule=fields, model=model))


def worker(run: RunDirectory, cache: AnyPath) -> Worker:
    return Worker(run, cache, None, rank=0, world_size=1)


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_what_an_infinite_update_has_made_is_neither_saved_nor_exported(
    tmp_path: Path, cache: AnyPath, ema_decay: float | None
) -> None:
    run = create(tmp_path, num_cycles=1, ema_decay=ema_decay)
    trained = worker(run, cache)
    engine: Any = trained.engines["generator"]

    def diverge(*_: Any) -> None:
        with torch.no_grad():
            owners(engine.places())[3].view(-1)[0] = math.inf

    engine.optimizer.register_step_post_hook(diverge)  # the gradient is finite, the update is not
    trained.run_all()
    assert math.isfinite(next(iter(run.metrics()))["generator/grad_norm"])
    report = run.health_report_path.read_text()
    assert "unhealthy at cycle 1: weights of the generator are no finite float32" in report
    assert "on rank(s) 0" in report
    assert trained.checkpoints.names() == []
    assert not (run.path / "model").exists()


@pytest.fixture
def poisoned(tmp_path: Path, cache: AnyPath) -> RunDirectory:
    """A run of two cycles whose newest checkpoint has a weight that is no number."""
    run = create(tmp_path)
    first = worker(run, cache)
    first.run_all()
    with torch.no_grad():
        owners(first.engines["generator"].places())[3].view(-1)[0] = math.nan
    first.checkpoints.save(2, first.engines, first.ema)
    return run


def test_a_run_goes_on_from_the_checkpoint_before_a_poisoned_one(
    poisoned: RunDirectory, cache: AnyPath
) -> None:
    rows = list(poisoned.metrics())
    again = worker(poisoned, cache)
    again.run_all()
    assert list(poisoned.metrics()) == rows  # nothing is trained from it
    report = poisoned.health_report_path.read_text()
    assert "unhealthy at cycle 2: weights of the generator are no finite float32" in report
    assert f"--resume {poisoned.path}@CYCLE from 1" in report

    poisoned.health_report_path.unlink()
    go_back(poisoned, poisoned.recipe(), 1)
    (aside,) = poisoned.set_aside.iterdir()
    assert {path.name for path in aside.iterdir()} == {"cycle-0000002", "metrics.jsonl"}
    assert len((aside / "metrics.jsonl").read_text().splitlines()) == 2
    healed = worker(poisoned, cache)
    healed.run_all()
    assert not poisoned.health_report_path.exists()
    assert healed.checkpoints.names() == ["cycle-0000001", "cycle-0000002"]
    assert [losses(row) for row in poisoned.metrics()] == [losses(row) for row in rows]


def losses(row: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a cycle without those of the machine."""
    return {name: v for name, v in row.items() if not name.startswith(("seconds", "ranks"))}


def test_a_model_that_its_files_cannot_hold_is_not_written(tmp_path: Path, cache: AnyPath) -> None:
    run = create(tmp_path, num_cycles=1, ema_decay=None)
    trained = worker(run, cache)
    trained.run_all()
    assert (run.path / "model" / "config.json").exists()
    with torch.no_grad():
        owners(trained.engines["generator"].places())[3].view(-1)[0] = 70_000
    trained.checkpoints.save(1, trained.engines, trained.ema)
    (run.path / "model" / "config.json").unlink()
    worker(run, cache).run_all()
    assert "model is written (jobs/export.py --dtype bf16" in run.health_report_path.read_text()
    assert not (run.path / "model" / "config.json").exists()


@pytest.mark.parametrize(
    ("values", "is_finite"),
    [
        ([1.0, math.nan], False),
        ([1.0, math.inf], False),
        ([-math.inf, 0.0], False),
        ([3e38, 3e38], True),  # whose norm is no finite float32
        ([], True),
    ],
)
def test_a_weight_that_is_no_finite_number_is_found(values: list[float], is_finite: bool) -> None:
    class Held:
        def places(self) -> list[ShardPlace]:
            tensors = [torch.ones(3), torch.tensor(values)]
            return [ShardPlace("a", 0, tensor, 0, tensor.numel()) for tensor in tensors]

    engines: Any = {"generator": Held()}
    if is_finite:
        demand_finite("unhealthy", engines, None)
        return
    with pytest.raises(UnhealthyError, match="unhealthy: weights of the generator"):
        demand_finite("unhealthy", engines, None)
