"""MLflow on SQLite, written by the tracker and read back by MLflow's own client."""

import json
import math
from pathlib import Path

import pytest
from mlflow import MlflowClient

from magicdistill.platform.recipe import Recipe, flatten
from magicdistill.platform.run_directory import RunDirectory
from magicdistill.platform.tracking import Tracker


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs; a new SQLite store takes seconds, so the tests share one."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def run(runs: Path, recipe: Recipe) -> RunDirectory:
    return RunDirectory.create(runs, recipe)


def client_of(run: RunDirectory) -> MlflowClient:
    return MlflowClient(f"sqlite:///{run.path.parent / 'mlflow.db'}")


def steps(run: RunDirectory, tracker: Tracker) -> list[int]:
    return [m.step for m in client_of(run).get_metric_history(tracker.run_id, "loss")]


def test_a_run_reads_back_with_parameters_curves_files_and_table(run: RunDirectory) -> None:
    with Tracker.start(run.recipe().tracking, run, {"shape": "2 workers"}) as tracker:
        tracker.metrics({"loss": 0.5, "nan": math.nan}, step=3)
        tracker.table([{"model": "teacher", "nfe": 28}, {"model": "student", "nfe": 4}], "results")
    client = client_of(run)
    stored = client.get_run(tracker.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.info.run_name == run.path.name
    assert stored.data.params["method.alpha_weak"] == "0.5"
    assert stored.data.params["schedule.optimizers.critic.lr"] == "0.001"
    assert stored.data.tags["shape"] == "2 workers"
    assert stored.data.tags["mlflow.source.git.commit"] == run.provenance().commit or "unknown"
    [point] = client.get_metric_history(tracker.run_id, "loss")
    assert (point.step, point.value) == (3, 0.5)
    folder = Path(client.download_artifacts(tracker.run_id, ""))
    assert (folder / "recipe.yaml").read_text() == run.recipe_path.read_text()
    assert "torch" in json.loads((folder / "code/packages.json").read_text())
    table = json.loads((folder / "results.json").read_text())
    assert table == {"columns": ["model", "nfe"], "data": [["teacher", 28], ["student", 4]]}


def test_metrics_and_samples_of_workers_are_mirrored_also_after_a_resume(
    run: RunDirectory,
) -> None:
    with Tracker.start(run.recipe().tracking, run) as tracker, tracker.mirror(every_s=0.05):
        for step in range(4):
            run.append_metrics(step, {"loss": 1.0})
        (run.samples / "cycle-3.png").write_bytes(b"picture")
    assert steps(run, tracker) == [0, 1, 2, 3]
    with Tracker.start(run.recipe().tracking, run) as resumed, resumed.mirror(every_s=0.05):
        run.rewind_metrics(2)
        for step in (3, 4):
            run.append_metrics(step, {"loss": 1.0})
    assert resumed.run_id == tracker.run_id
    assert steps(run, resumed) == [0, 1, 2, 3, 4]
    samples = client_of(run).list_artifacts(tracker.run_id, "samples")
    assert [file.path for file in samples] == ["samples/cycle-3.png"]


def test_a_lost_store_is_rebuilt_from_the_run_directory(run: RunDirectory) -> None:
    for step in range(3):
        run.append_metrics(step, {"loss": 1.0})
    with Tracker.start(run.recipe().tracking, run) as tracker, tracker.mirror():
        pass
    assert steps(run, tracker) == [0, 1, 2]


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_the_status_tells_how_a_run_ended(
    run: RunDirectory, error: type[BaseException], status: str
) -> None:
    with pytest.raises(error), Tracker.start(run.recipe().tracking, run) as tracker:
        raise error
    assert client_of(run).get_run(tracker.run_id).info.status == status


def test_nested_values_flatten_to_dotted_names() -> None:
    values = {"a": {"b": 1, "c": [1, 2]}, "d": [{"e": None}]}
    assert flatten(values) == {"a.b": 1, "a.c": [1, 2], "d.0.e": None}
