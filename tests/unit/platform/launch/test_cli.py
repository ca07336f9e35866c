"""The command line of a job, as far as the job."""

import json
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from magicdistill.platform.config.recipe import load_recipe
from magicdistill.platform.launch.cli import parse_job, split_cycle
from magicdistill.platform.runs.run_directory import RunDirectory

ROOT = Path(__file__).parents[4]


@dataclass(frozen=True)
class End:
    status: int | str | None
    out: str
    err: str


Ending = Callable[..., End]


@dataclass(frozen=True)
class Job:
    folder: Path
    recipe: Path


@pytest.fixture
def job(tmp_path: Path, base: Path) -> Job:
    return Job(tmp_path, base)


@pytest.fixture
def ending(job: Job, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ending:
    """Parse a command line that does not get as far as the job."""

    def parse(*arguments: str) -> End:
        monkeypatch.chdir(job.folder)
        with pytest.raises(SystemExit) as ended:
            parse_job("toy", default_recipe=str(job.recipe), description="", arguments=arguments)
        out, err = capfd.readouterr()
        return End(ended.value.code, out, err)

    return parse


def test_a_dry_run_is_the_recipe_that_a_run_stores(job: Job, ending: Ending) -> None:
    flags = ["--seed", "8"]
    run = RunDirectory.create(job.folder / "runs", load_recipe(job.recipe, flags))
    assert ending("--dry-run", *flags) == End(0, run.recipe_path.read_text(), "")


def test_pictures_are_no_clips_to_judge_a_training_by(job: Job, ending: Ending) -> None:
    path = job.folder / "pictures.yaml"
    pictures = "{num_frames: 17, data: {bucket: {num_frames: 1}}}"
    path.write_text(f"extends: portrait-tiny\nevaluation: {pictures}\n")
    end = ending("--dry-run", "--recipe", str(path))
    assert end.status == 2
    assert "--protocol" in end.err


def test_weights_of_a_network_that_no_backbone_has_are_refused(job: Job, ending: Ending) -> None:
    folder = job.folder / "weights"
    folder.mkdir()
    (folder / "config.json").write_text('{"_class_name": "FluxTransformer2DModel"}')
    for field in ("model.teacher", "model.generator"):
        end = ending("--dry-run", f"--{field}", str(folder))
        assert (end.status, end.out) == (2, "")
        assert (
            f"{field}: {folder} holds weights of FluxTransformer2DModel, which is of no" in end.err
        )
        assert "HunyuanVideoTransformer3DModel" in end.err


def test_help_of_a_section_shows_the_alternative_that_was_chosen(ending: Ending) -> None:
    end = ending("--method.name", "finetune", "--help", "method")
    assert (end.status, end.err) == (0, "")
    assert "--method.uniform_share FLOAT" in end.out and "--method.alpha_weak" not in end.out


def test_help_of_everything_has_the_flags_of_job_and_recipe(ending: Ending) -> None:
    end = ending("--help", "all")
    assert "--force_changed KEY ..." in end.out and "--cluster.num_workers INT" in end.out


def test_help_of_what_does_not_exist_is_refused(ending: Ending) -> None:
    end = ending("--help", "methode")
    assert end.status == 2
    assert "did you mean method?" in end.err


def test_a_list_of_recipes_needs_no_more(ending: Ending) -> None:
    end = ending("--list", "--recipe", "none")
    assert (end.status, end.err) == (0, "")
    assert "Recipes for jobs/toy.py" in end.out


def test_a_recipe_of_another_job_is_refused_with_its_name(ending: Ending) -> None:
    end = ending("--recipe", "portrait-tiny-data")
    assert end.status == 2
    assert "portrait-tiny-data is for jobs/curate.py" in end.err


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "jobs").glob("*.py")))
def test_every_job_has_help(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"jobs/{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs" / f"{name}.py"), run_name="__main__")
    out, err = capfd.readouterr()
    assert (ended.value.code, err) == (0, "")
    assert f"python jobs/{name}.py [" in out and "  --" in out


def test_an_unknown_flag_is_refused_with_the_nearest_name(ending: Ending) -> None:
    end = ending("--method.alpha_weka", "0.5")
    assert end.status == 2
    assert "--method.alpha_weak" in end.err


@pytest.mark.parametrize("arguments", [["--recipe", "none"], ["--resume", "none"]])
def test_what_does_not_exist_is_refused(ending: Ending, arguments: list[str]) -> None:
    end = ending(*arguments)
    assert end.status == 2
    assert "'none'" in end.err


def test_a_resumed_run_refuses_another_recipe_with_the_difference(job: Job, ending: Ending) -> None:
    run = RunDirectory.create(job.folder / "runs", load_recipe(job.recipe, ["--seed", "21"]))
    run.become_latest()
    end = ending("--resume", "latest", "--seed", "22", "--method.alpha_weak", "0.1")
    assert end.status == 2
    assert "seed: 21 -> 22" in end.err
    assert "--force-changed seed method.alpha_weak" in end.err
    longer = ("--resume", "latest", "--schedule.num_cycles", "99")
    assert ending(*longer, "--dry-run").status == 0


def test_a_resumed_run_takes_no_other_recipe(job: Job, ending: Ending) -> None:
    RunDirectory.create(job.folder / "runs", load_recipe(job.recipe)).become_latest()
    end = ending("--resume", "latest", "--recipe", str(job.recipe))
    assert end.status == 2
    assert "leave --recipe out" in end.err


def commit_checkpoint(run: RunDirectory, cycle: int) -> None:
    folder = run.checkpoints / f"cycle-{cycle:07d}"
    folder.mkdir()
    (folder / "COMMITTED").write_text(json.dumps({"cycle": cycle, "files": {}}))


def test_a_run_is_resumed_from_a_cycle_of_which_it_has_a_checkpoint(
    job: Job, ending: Ending
) -> None:
    run = RunDirectory.create(job.folder / "runs", load_recipe(job.recipe))
    run.become_latest()
    for cycle in (4, 6):
        commit_checkpoint(run, cycle)
    assert ending("--resume", "latest@4", "--dry-run").status == 0
    end = ending("--resume", f"{run.path}@5", "--dry-run")
    assert end.status == 2
    assert f"no checkpoint of cycle 5 in {run.checkpoints}: it has those of 4, 6" in end.err


@pytest.mark.parametrize(
    ("text", "run", "cycle"),
    [
        ("latest", "latest", None),
        ("latest@12", "latest", 12),
        ("a@b/run@0012", "a@b/run", 12),
        ("run@12/", "run@12/", None),
        ("run@home", "run@home", None),
        ("@12", "@12", None),
    ],
)
def test_a_cycle_is_what_follows_the_last_at_sign(text: str, run: str, cycle: int | None) -> None:
    assert split_cycle(text) == (run, cycle)
