"""The command line of a job in a process of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from magicdistill.platform.config.recipe import load_recipe, to_yaml
from magicdistill.platform.runs.run_directory import RunDirectory

ROOT = Path(__file__).parents[4]
JOB = """
import sys
sys.path[0] = {root!r}
from magicdistill.platform.launch.cli import parse_job
heavy = {{"torch", "ray", "mlflow", "cv2", "av", "duckdb", "pyarrow.compute"}}
try:
    args = parse_job("toy", default_recipe={recipe!r}, description="Do nothing.")
finally:
    assert not heavy & set(sys.modules), heavy & set(sys.modules)
print(args.recipe.seed, args.resume and args.resume.path, args.verbose)
"""


class Job:
    def __init__(self, folder: Path, recipe: Path) -> None:
        self.folder, self.recipe = folder, recipe
        self.script = folder / "toy.py"
        self.script.write_text(JOB.format(root=str(ROOT), recipe=str(self.recipe)))

    def __call__(
        self, *arguments: str, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(self.script), *arguments],
            cwd=cwd or self.folder,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def job(tmp_path: Path, base: Path) -> Job:
    return Job(tmp_path, base)


def test_a_dry_run_prints_the_resolved_recipe_without_heavy_imports(job: Job) -> None:
    flags = ["--method.alpha_weak", "0.125", "--engine.kind", "torch"]
    result = job("--dry-run", *flags)
    assert (result.stdout, result.stderr) == (to_yaml(load_recipe(job.recipe, flags)), "")
    assert result.returncode == 0


def test_help_is_fast_and_short(job: Job) -> None:
    result = job("--help")
    assert (result.returncode, result.stderr) == (0, "")
    for text in ("Do nothing.", "--dry_run", "--resume RUN", "-v", "--help method ", "--seed INT"):
        assert text in result.stdout
    assert len(result.stdout.splitlines()) < 80
    assert any(cpu_seconds(job, "--help") < 3 for _ in range(3))  # 1 where nothing else runs


def cpu_seconds(job: Job, *arguments: str) -> float:
    before_s = os.times().children_user
    job(*arguments)
    return os.times().children_user - before_s


@pytest.mark.parametrize("flag", ["--help", "--dry-run"])
def test_output_that_nobody_reads_ends_the_job_quietly(job: Job, flag: str) -> None:
    command = [sys.executable, str(job.script), flag]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == -signal.SIGPIPE


def test_a_job_runs_from_anywhere_with_its_recipe_and_flags(job: Job) -> None:
    result = job("--seed", "5", "-v", cwd=Path("/"))
    assert (result.stdout, result.stderr) == ("5 None True\n", "")


def test_a_resumed_run_brings_its_recipe_and_takes_overrides(job: Job) -> None:
    run = RunDirectory.create(job.folder / "runs", load_recipe(job.recipe, ["--seed", "21"]))
    run.become_latest()
    assert job("--resume", "latest").stdout == f"21 {run.path} False\n"
    elsewhere = ("--cluster.num_workers", "1", "--engine.kind", "torch")
    assert job("--resume", "latest", *elsewhere, "--dry-run").returncode == 0
    forced = ("--resume", run.path.name, "--seed", "22", "--force-changed", "seed")
    assert job(*forced).stdout == f"22 {run.path} False\n"


def test_a_dry_run_shows_the_protocol_with_overrides() -> None:
    command = [sys.executable, "jobs/evaluate.py", "--recipe", "magic141-4step-8xh100"]
    command += ["--protocol", "vfhq", "--evaluation.num_clips", "7", "--model", "x", "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "num_clips: 7" in done.stdout and "name: vfhq" in done.stdout
