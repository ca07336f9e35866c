"""The smoke recipe from end to end: submitted to a cluster, resumed on this machine."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from magicdistill.data_pipeline.progress import format_pace
from magicdistill.platform.runs.run_directory import RunDirectory
from tests.ray_head import ROOT, Head, ray_head
from tests.terminal import run_in_terminal

pytestmark = pytest.mark.timeout(900)  # a first use compiles, on whatever there is
GOLDEN = ROOT / "tests" / "golden" / "portrait-tiny-smoke.json"
LOSSES = ("critic/fake_score", "critic/discriminator", "generator/dmd", "generator/adversarial")


def distill(runs: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "distill.py"), "--runs", str(runs), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def run_of(job: subprocess.CompletedProcess[str]) -> RunDirectory:
    """Return the run of a job that ended well."""
    assert job.returncode == 0, job.stdout + job.stderr
    return RunDirectory.open(job.stdout.partition("] run ")[2].partition("\n")[0])


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as head:
        yield head


@pytest.fixture(scope="module")
def runs(head) -> Path:
    """The default folder of a submitted job."""
    return head.folder / "runs"


@pytest.fixture(scope="module")
def smoke(head) -> subprocess.CompletedProcess[str]:
    return head.submit(sys.executable, "jobs/distill.py", "--recipe", "portrait-tiny-smoke")


def test_the_smoke_recipe_ends_with_table_pictures_and_a_model(smoke):
    run = run_of(smoke)
    assert "FD proxy" in smoke.stdout
    assert {row["variant"] for row in json.loads((run.path / "scores.json").read_text())} == {
        "teacher", "euler", "student",
    }  # fmt: skip
    for name in ("comparison.mp4", "comparison.png", "cycle-0000002.png"):
        assert (run.samples / name).stat().st_size > 1000
    assert (run.path / "model" / "config.json").is_file()


def test_both_workers_were_measured_and_the_versions_are_kept(smoke):
    run = run_of(smoke)
    _, *ranks = run.preflight_path.read_text().splitlines()
    assert [line.split()[0] for line in ranks] == ["0", "1"]
    assert all(float(number) > 0 for line in ranks for number in line.split()[1:5])
    assert run.provenance().workers["ray"] == version("ray")
    assert "matmul" in smoke.stdout and "is slow" not in smoke.stdout
    gathered = [row for row in run.metrics() if "ranks/forward_s/max" in row]
    assert len(gathered) == 2 and gathered[0]["ranks/forward_s/rank_of_max"] in (0, 1)


def test_two_workers_under_deepspeed_have_the_recorded_losses(smoke):
    """The exact ones are test_golden_losses.py's; here the processor chooses how it rounds.

    UPDATE_GOLDEN=1 records them again.
    """
    found = [{name: row[name] for name in LOSSES if name in row} for row in run_of(smoke).metrics()]
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=2) + "\n")
    for golden, now in zip(json.loads(GOLDEN.read_text()), found, strict=True):
        assert now == pytest.approx(golden, rel=1e-3)


def test_the_log_of_a_submitted_job_is_dated_lines_without_those_of_frameworks(smoke):
    lines = smoke.stdout.splitlines()
    said = [line for line in lines if re.match(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] ", line)]
    assert any("] cycle 1/2  " in line for line in said)
    assert "\r" not in smoke.stdout and "\033" not in "".join(said)
    assert not [line for line in lines if re.search(r"\.(cc|h):\d", line)]


@pytest.mark.long
def test_a_run_resumes_after_its_last_checkpoint_and_shows_it_on_a_terminal(smoke, runs):
    copy = shutil.copytree(run_of(smoke).path, runs / "copy")
    program = [sys.executable, "jobs/distill.py", "--runs", str(runs), "--resume", "copy"]
    again = run_in_terminal([*program, "--schedule.num_cycles", "3"], ROOT, 80, timeout_s=600)
    assert again.returncode == 0, again.raw
    rows = list(RunDirectory(copy).metrics())
    assert [row["step"] for row in rows] == [1, 2, 3]
    said = [line for line in again.lines if line.startswith("[")]
    assert any("] continuing after cycle 2" in line for line in said)
    pace = format_pace(rows[-1]["seconds_per_cycle"])  # its only cycle is the first as well
    assert any(f"] cycle 3/3  {pace}, 0 s left" in line for line in said)
    assert any(" training " in line and "0/3" in line for line in again.lines)
    too_wide = [line for line in again.lines if len(line) > 80 and str(runs) not in line]
    assert too_wide == []
    assert not [line for line in again.lines if re.search(r"\.(cc|h):\d|Warning", line)]


SHARED = """
extends: portrait-tiny-smoke
cluster: {sequence_parallel: 2}
schedule: {sample_every: null}
evaluation: null
"""


@pytest.mark.long
def test_two_workers_on_one_sample_give_the_losses_of_two_on_their_own(smoke, runs):
    recipe = runs / "shared.yaml"
    recipe.write_text(SHARED)
    shared = distill(runs, "--recipe", str(recipe))
    own, found = (list(run_of(job).metrics()) for job in (smoke, shared))
    for one, other in zip(own, found, strict=True):
        expected = {name: one[name] for name in LOSSES if name in one}
        assert {name: other[name] for name in expected} == pytest.approx(expected, rel=1e-3)


@pytest.mark.long
def test_ctrl_c_leaves_no_process_behind(runs, smoke):
    command = [sys.executable, str(ROOT / "jobs" / "distill.py"), "--runs", str(runs)]
    command += ["--recipe", "portrait-tiny-smoke", "--schedule.num_cycles", "500"]
    environment = os.environ | {"MARK": str(runs)}
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment
    ) as job:
        assert job.stdout is not None
        for line in job.stdout:
            if "cycle 25/500" in line:
                break
        job.send_signal(signal.SIGINT)
        rest = job.stdout.read()
        job.wait(timeout=60)
    assert job.returncode != 0 and "--resume" in rest
    assert _marked(f"MARK={runs}") == []


def _marked(variable: str) -> list[str]:
    """Return the command lines of processes that inherited a variable."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if variable.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return [line for line in found if line]
