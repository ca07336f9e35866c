"""MLflow on SQLite, written by the tracker and read back by MLflow's own client."""

import json
import math
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from magicdistill.models.objectives.config import SamplerConfig
from magicdistill.platform.config.recipe import Recipe, load_recipe
from magicdistill.platform.evaluation.log_scores import track_scores
from magicdistill.platform.evaluation.score_table import ScoreRow, ScoreTable
from magicdistill.platform.inference.variants import Variant
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.tracking.event_log import EventLog
from magicdistill.platform.tracking.events import File, Points
from magicdistill.platform.tracking.sender import PARENT
from magicdistill.platform.tracking.tracker import Tracker, send_unsent


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs; a new SQLite store takes seconds, so the tests share one."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("portrait-tiny-smoke")


@pytest.fixture
def run(runs: Path, recipe: Recipe) -> RunDirectory:
    return RunDirectory.create(runs, recipe)


def client_of(run: RunDirectory) -> MlflowClient:
    return MlflowClient(f"sqlite:///{run.path.parent / 'mlflow.db'}")


def stored(run: RunDirectory, tracker: Tracker) -> Run:
    return client_of(run).get_run(tracker.run_id or "")


def steps(run: RunDirectory, tracker: Tracker) -> list[int]:
    return [m.step for m in client_of(run).get_metric_history(tracker.run_id or "", "loss")]


def files(run: RunDirectory, tracker: Tracker, folder: str) -> list[str]:
    return [file.path for file in client_of(run).list_artifacts(tracker.run_id or "", folder)]


def test_a_run_reads_back_with_parameters_curves_files_and_table(run: RunDirectory) -> None:
    with Tracker.start(run.recipe().tracking, run, {"shape": "2 workers"}) as tracker:
        tracker.metrics({"loss": 0.5, "nan": math.nan}, step=3)
        tracker.table([{"model": "teacher", "nfe": 28}, {"model": "student", "nfe": 4}], "results")
    found = stored(run, tracker)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == f"distillation: {run.path.name}"
    schedule = run.recipe().schedule
    assert found.data.params["method.alpha_weak"] == "0.25"
    assert found.data.params["schedule.optimizers.critic.lr"] == str(
        schedule.optimizers["critic"].lr
    )
    assert found.data.tags["shape"] == "2 workers"
    assert found.data.tags["mlflow.source.git.commit"] == run.provenance().commit or "unknown"
    client = client_of(run)
    [point] = client.get_metric_history(found.info.run_id, "loss")
    assert (point.step, point.value) == (3, 0.5)
    assert math.isnan(found.data.metrics["nan"])
    folder = Path(client.download_artifacts(found.info.run_id, ""))
    assert (folder / "recipe.yaml").read_text() == run.recipe_path.read_text()
    assert "torch" in json.loads((folder / "code/packages.json").read_text())
    table = json.loads((folder / "results.json").read_text())
    assert table == {"columns": ["model", "nfe"], "data": [["teacher", 28], ["student", 4]]}


def test_runs_stand_below_the_experiments_own_run_with_their_purpose(
    run: RunDirectory, recipe: Recipe
) -> None:
    with Tracker.start(recipe.tracking, run) as first:
        pass
    other = RunDirectory.create(run.path.parent, recipe)
    with Tracker.start(recipe.tracking, other, purpose="data", parent=run) as second:
        pass
    tags = [stored(run, tracker).data.tags for tracker in (first, second)]
    assert [found["purpose"] for found in tags] == ["distillation", "data"]
    assert tags[1][PARENT] == first.run_id
    parent = client_of(run).get_run(tags[0][PARENT])
    assert (parent.info.run_name, parent.info.status) == ("magicdistill: all runs", "FINISHED")
    assert parent.data.tags["purpose"] == "experiment"


def test_metrics_and_samples_of_workers_are_mirrored_also_after_a_resume(
    run: RunDirectory,
) -> None:
    with Tracker.start(run.recipe().tracking, run) as tracker, tracker.mirror(every_s=0.05):
        for step in range(4):
            run.append_metrics(step, {"loss": 1.0})
        (run.samples / "all.png").write_bytes(b"picture")
    assert steps(run, tracker) == [0, 1, 2, 3]
    with Tracker.start(run.recipe().tracking, run) as resumed, resumed.mirror(every_s=0.05):
        run.rewind_metrics(2)
        for step in (3, 4):
            run.append_metrics(step, {"loss": 1.0})
    assert resumed.run_id == tracker.run_id
    assert steps(run, resumed) == [0, 1, 2, 3, 4]
    assert files(run, resumed, "samples") == ["samples/all.png"]


def test_rows_of_metrics_are_sent_once_however_they_are_cut_off_and_written_again(
    run: RunDirectory,
) -> None:
    """The rows of the second try are shorter, so that no place in the file is what it was."""
    config, event_log = run.recipe().tracking, EventLog(run)
    for step in range(1, 6):
        run.append_metrics(step, {"loss": 1 / 3})
    with Tracker.start(config, run) as tracker:
        pass
    run.rewind_metrics(2)
    for step in range(3, 8):
        run.append_metrics(step, {"loss": 1.0})
    with run.metrics_path.open("a") as file:
        file.write('{"step": 8, "loss": 1')
    assert event_log.num_unsent("") == 2
    assert send_unsent(config, run)
    assert steps(run, tracker) == [1, 2, 3, 4, 5, 6, 7]
    assert not any(isinstance(logged.event, Points) for logged in event_log.logged_events())
    with run.metrics_path.open("a") as file:
        file.write("}\n")
    assert event_log.num_unsent("") == 1
    assert send_unsent(config, run)
    assert steps(run, tracker) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_row_that_was_sent_but_not_noted_is_no_second_point(run: RunDirectory) -> None:
    run.append_metrics(1, {"loss": 1.0})
    config, event_log = run.recipe().tracking, EventLog(run)
    with Tracker.start(config, run) as tracker:
        pass
    progress = event_log.progress("")
    event_log.record("", progress.model_copy(update={"rows": {}}))  # as after a kill
    assert event_log.num_unsent("") == 1
    assert send_unsent(config, run)
    assert steps(run, tracker) == [1]


def test_rows_that_the_event_log_of_an_old_run_holds_are_sent_from_there(
    run: RunDirectory,
) -> None:
    config, event_log = run.recipe().tracking, EventLog(run)
    old = Tracker(config, run)
    for step in (1, 2, 3):
        run.append_metrics(step, {"loss": 0.5})
        if step < 3:
            values = {"loss": 0.5}
            event_log.add(Points(source="cycle", time_ms=step, step=step, values=values))
    event_log.add(Points(source="exam", time_ms=2, step=2, values={"validation/lpips": 0.25}))
    assert send_unsent(config, run)
    assert steps(run, old) == [1, 2, 3]
    run.append_checkpoint_scores(2, {"validation/lpips": 0.25})
    assert EventLog(run).num_unsent("") == 0


def test_a_refused_row_waits_and_holds_no_other_up(run: RunDirectory) -> None:
    config = run.recipe().tracking
    run.append_metrics(1, {"loss": 1.0, "loss?": 1.0})
    with Tracker.start(config, run) as tracker, tracker.mirror(every_s=0.05):
        while EventLog(run).progress("").rows == {}:
            time.sleep(0.05)
        run.append_metrics(2, {"loss": 1.0})
    assert 2 in steps(run, tracker)
    assert EventLog(run).num_unsent("") == 1
    assert EventLog(run).progress("").rows["metrics"].refused == (1,)


def test_a_run_that_was_deleted_in_mlflow_is_sent_again(run: RunDirectory) -> None:
    for step in range(3):
        run.append_metrics(step, {"loss": 1.0})
    config = run.recipe().tracking
    with Tracker.start(config, run) as tracker, tracker.mirror():
        pass
    assert steps(run, tracker) == [0, 1, 2]
    deleted = tracker.run_id or ""
    client_of(run).delete_run(deleted)
    assert send_unsent(config, run)
    assert tracker.run_id not in (None, deleted)
    assert steps(run, tracker) == [0, 1, 2]
    assert stored(run, tracker).info.status == "FINISHED"


def test_latents_and_weights_are_inputs_and_equal_weights_one_model(
    run: RunDirectory, tmp_path: Path
) -> None:
    teacher, again = tmp_path / "teacher", tmp_path / "again"
    for folder in (teacher, again):
        folder.mkdir()
        (folder / "weights").write_bytes(b"weights")
    with Tracker.start(run.recipe().tracking, run) as tracker:
        tracker.data({"training": {"latents": "0a1b", "policy": "2c", "mixture": "portrait 8"}})
        tracker.weights("model.teacher", "teacher", teacher)
        tracker.weights("model.generator", "again", again)
    found = stored(run, tracker)
    assert found.inputs is not None
    [latents] = found.inputs.dataset_inputs
    assert (latents.dataset.name, latents.dataset.digest) == ("training latents", "0a1b")
    assert found.data.params["lineage.training.policy"] == "2c"
    tags = found.data.tags
    assert tags["lineage.model.teacher"] == "teacher"
    assert tags["lineage.model.teacher.sha256"] == tags["lineage.model.generator.sha256"]
    assert len({model.model_id for model in found.inputs.model_inputs}) == 1


def test_what_a_store_refuses_waits_aside_and_is_tried_again(run: RunDirectory) -> None:
    missing = run.path / "report.md"
    with Tracker.start(run.recipe().tracking, run) as tracker:
        tracker.artifact(missing)
        tracker.metrics({"loss": 1.0}, step=1)
    assert steps(run, tracker) == [1]
    assert EventLog(run).num_unsent("") == 1
    missing.write_text("late")
    assert send_unsent(run.recipe().tracking, run)
    assert EventLog(run).num_unsent("") == 0
    assert "report.md" in files(run, tracker, "")


@pytest.mark.parametrize("end", [b"", b'{"kind": "params"}\n'])
def test_a_line_that_a_kill_or_a_full_disk_cut_short_is_dropped(
    run: RunDirectory, end: bytes
) -> None:
    with Tracker.start(run.recipe().tracking, run):
        pass
    event_log = EventLog(run)
    whole = list(event_log.logged_events())
    with event_log.path.open("ab") as file:
        file.write(b'{"kind": "poi' + end)
    assert list(EventLog(run).logged_events()) == whole


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_the_status_tells_how_a_run_ended(
    run: RunDirectory, error: type[BaseException], status: str
) -> None:
    with pytest.raises(error), Tracker.start(run.recipe().tracking, run) as tracker:
        raise error
    assert stored(run, tracker).info.status == status


def test_an_evaluation_is_one_run_with_its_scores_and_weights(
    runs: Path, recipe: Recipe, tmp_path: Path
) -> None:
    weights = tmp_path / "student"
    weights.write_bytes(b"weights")
    rows = (
        ScoreRow("real", 0, {"lpips": 0.0}),
        ScoreRow("student", 4, {"lpips": 0.25, "fid": 12.0}),
    )
    path = ScoreTable("portrait-tiny", (), rows, {}).save(tmp_path)
    ways = [Variant("student", str(weights), SamplerConfig())]
    here = recipe.model_copy(update={"runs": str(runs)})
    for _ in range(2):
        track_scores(here, path, ways)
    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("magicdistill")
    assert experiment is not None
    [found] = client.search_runs([experiment.experiment_id], "tags.purpose = 'evaluation'")
    assert found.data.metrics["evaluation/student/fid"] == 12
    assert "lineage.evaluated.student.sha256" in found.data.tags
    table = json.loads(Path(client.download_artifacts(found.info.run_id, "table.json")).read_text())
    [student] = [row for row in table["data"] if row[0] == "student"]
    assert "12.00" in student and "0.2500" in student


def test_a_disk_that_is_full_for_a_moment_loses_no_sample(run: RunDirectory) -> None:
    tracker = Tracker(run.recipe().tracking, run)
    path, aside = tracker.event_log.path, run.path / "aside"
    path.rename(aside)
    path.symlink_to("/dev/full")
    (run.samples / "all.png").write_bytes(b"picture")
    with pytest.raises(OSError, match="No space left"):
        tracker.collect()
    path.unlink()
    aside.rename(path)
    tracker.collect()
    logged = [logged.event for logged in EventLog(run).logged_events()]
    assert [event.path for event in logged if isinstance(event, File)] == ["samples/all.png"]
