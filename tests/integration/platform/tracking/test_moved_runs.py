"""A folder of runs that moved keeps its pictures and models in MLflow."""

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

from mlflow import MlflowClient

from magicdistill.platform.config.recipe import load_recipe
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.tracking.relocation import STORE, relocate
from magicdistill.platform.tracking.tracker import Tracker

ROOT = Path(__file__).parents[4]


def test_runs_that_moved_keep_their_pictures_and_models(tmp_path: Path) -> None:
    before, after = tmp_path / "runs", tmp_path / "else where" / "runs"
    run = RunDirectory.create(before, load_recipe("portrait-tiny-smoke"))
    picture = run.samples / "sheet.png"
    picture.write_bytes(b"a picture")
    with Tracker.start(run.recipe().tracking, run) as tracker:
        tracker.artifact(picture, "samples")
    run_id = tracker.run_id or ""
    client = MlflowClient(f"sqlite:///{before / STORE}")
    found = client.get_run(run_id)
    model = client.create_logged_model(found.info.experiment_id, source_run_id=run_id)
    weights = Path(model.artifact_location.removeprefix("file://")) / "weights"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    client.create_registered_model("student")
    source = f"{found.info.artifact_uri}/samples"
    client.create_model_version("student", source, run_id)

    after.parent.mkdir()
    shutil.move(before, after)
    # what `make dashboard RUNS=...` runs first
    command = [sys.executable, "-m", "magicdistill.platform.tracking.relocation", str(after)]
    subprocess.run(command, cwd=ROOT, check=True)

    moved = MlflowClient(f"sqlite:///{after / STORE}")
    assert [file.path for file in moved.list_artifacts(run_id, "samples")] == ["samples/sheet.png"]
    copy = moved.download_artifacts(run_id, "samples/sheet.png", str(tmp_path))
    assert Path(copy).read_bytes() == b"a picture"
    location = moved.get_logged_model(model.model_id).artifact_location
    assert location.startswith(after.as_uri()) and location.endswith(model.model_id + "/artifacts")
    assert moved.get_model_version("student", "1").source == source.replace(
        before.as_uri(), after.as_uri()
    )
    assert str(before) + "/" not in "\n".join(addresses(after / STORE))

    other = RunDirectory.create(after, load_recipe("portrait-tiny-smoke"))
    with Tracker.start(other.recipe().tracking, other) as tracker:
        tracker.artifact(other.recipe_path, "samples")
    assert len(moved.list_artifacts(tracker.run_id or "", "samples")) == 1
    assert not before.exists()  # where MLflow made the experiment


def addresses(store: Path) -> list[str]:
    """Return all addresses of files in a store, in whichever table."""
    with sqlite3.connect(store) as database:
        lines = list(database.iterdump())
    return [line for line in lines if "file://" in line]


def test_a_folder_without_a_store_is_left_alone(tmp_path: Path) -> None:
    relocate(tmp_path)
    assert [*tmp_path.iterdir()] == []
