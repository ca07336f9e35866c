"""The folder of a run."""

import math
from pathlib import Path

import pytest

from magicdistill.models.paths import PathError
from magicdistill.platform.config.recipe import Recipe, load_recipe
from magicdistill.platform.data.prepare import data_root
from magicdistill.platform.runs.run_directory import COMMITTED, RunDirectory, resolve_root


def test_a_run_is_named_after_its_recipe_and_found_by_name(tmp_path: Path, recipe: Recipe) -> None:
    first = RunDirectory.create(tmp_path / "runs", recipe)
    second = RunDirectory.create(tmp_path / "runs", recipe)
    assert first.path.name.startswith("base-")
    assert first != second
    assert RunDirectory.open(first.path.name, root=tmp_path / "runs") == first
    assert RunDirectory.open(first.path, root="elsewhere") == first


def test_the_latest_run_is_the_last_one_that_trained(tmp_path: Path, recipe: Recipe) -> None:
    trained, died = (RunDirectory.create(tmp_path, recipe) for _ in range(2))
    with pytest.raises(FileNotFoundError, match="no run 'latest'"):
        RunDirectory.open("latest", root=tmp_path)
    trained.append_metrics(1, {"loss": 0.5})
    assert RunDirectory.open("latest", root=tmp_path) == trained
    died.append_metrics(1, {"loss": 0.5})
    trained.append_metrics(2, {"loss": 0.25})
    assert RunDirectory.open("latest", root=tmp_path) == died


def test_a_run_can_be_resumed_once_it_has_a_complete_checkpoint(
    tmp_path: Path, recipe: Recipe
) -> None:
    run = RunDirectory.create(tmp_path, recipe)
    cut_off = run.checkpoints / "cycle-0000001"
    cut_off.mkdir()
    assert not run.has_checkpoint
    (cut_off / COMMITTED).touch()
    assert run.has_checkpoint


@pytest.mark.parametrize("folder", ["/proc/nowhere", "/dev/null", "/proc/version/x"])
def test_runs_where_nothing_can_be_written_are_refused_with_the_fix(
    folder: str, recipe: Recipe
) -> None:
    with pytest.raises(PathError, match=rf"--runs {folder}.*give another folder"):
        RunDirectory.create(folder, recipe)


def test_a_run_keeps_its_recipe_and_what_it_was_made_with(tmp_path: Path, recipe: Recipe) -> None:
    run = RunDirectory.create(tmp_path, recipe)
    assert run.recipe() == recipe
    assert "torch" in run.provenance().packages
    changed = recipe.model_copy(update={"seed": 77})
    run.store(changed)
    assert run.recipe() == changed


def test_a_missing_run_is_told_with_those_there_are(tmp_path: Path, recipe: Recipe) -> None:
    run = RunDirectory.create(tmp_path, recipe)
    with pytest.raises(FileNotFoundError, match=run.path.name):
        RunDirectory.open("none", root=tmp_path)
    with pytest.raises(FileNotFoundError, match="no runs"):
        RunDirectory.open("none", root=tmp_path / "empty")


def test_metrics_read_back_and_rewind_to_a_step(tmp_path: Path, recipe: Recipe) -> None:
    run = RunDirectory.create(tmp_path, recipe)
    run.rewind_metrics(0)
    for step in range(5):
        run.append_metrics(step, {"loss": 1 / (step + 1), "nan": math.nan})
    assert [row["step"] for row in run.metrics()] == [0, 1, 2, 3, 4]
    run.rewind_metrics(2)
    rows = list(run.metrics())
    assert [row["loss"] for row in rows] == [1, 1 / 2, 1 / 3]
    assert math.isnan(rows[0]["nan"])


def test_a_row_that_was_cut_short_does_not_count(tmp_path: Path, recipe: Recipe) -> None:
    run = RunDirectory.create(tmp_path, recipe)
    run.append_metrics(1, {"loss": 1.0})
    with run.metrics_path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert [row["step"] for row in run.metrics()] == [1]
    run.rewind_metrics(1)
    run.append_metrics(2, {"loss": 0.5})
    assert [row["step"] for row in run.metrics()] == [1, 2]


def test_relative_runs_of_a_submitted_job_are_kept_at_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert resolve_root("runs") == tmp_path / "runs"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert resolve_root("runs") == tmp_path / "home" / "runs"
    assert resolve_root(tmp_path / "absolute") == tmp_path / "absolute"


def test_a_relative_data_root_of_a_submitted_job_is_kept_at_home_too(
    base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    root = {
        name: data_root(load_recipe(base, ["--data_root", name]), tmp_path / "runs")
        for name in ("shared", str(tmp_path / "absolute"), "s3://bucket/prefix")
    }
    assert root.pop("shared") == tmp_path / "home" / "shared"
    assert all(str(path) == name for name, path in root.items())
    assert data_root(load_recipe(base), tmp_path / "runs") == tmp_path / "runs" / "data"
