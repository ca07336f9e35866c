"""The commands of the first run on 40 GPUs: the same in all files, and each one parses."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from tests.jobs_in_process import apart, run

__all__ = ["apart"]
ROOT = Path(__file__).parents[2]
PAGE = "docs/first_run.md"
RECIPE = "magic141-4step-40xh100"
JOB = re.compile(r"python (jobs/(\w+)\.py [^\n`]*)")


def commands(name: str) -> list[tuple[str, str]]:
    """Return the jobs that a file names with flags, and those."""
    text = re.sub(r"\\\n\s*", "", (ROOT / name).read_text())
    if name.endswith("kuberay.yaml"):  # an entrypoint that is folded over lines
        entries = [d.get("spec", {}).get("entrypoint") for d in yaml.safe_load_all(text)]
        text = "\n".join(filter(None, entries))
    found = [(job, line.split(".py ", 1)[1]) for line, job in JOB.findall(text)]
    found = [(job, re.sub(r"\s+(#.*)?$", "", flags)) for job, flags in found]
    return [(job, flags) for job, flags in found if flags.startswith("--recipe")]


def test_the_page_checks_plans_tries_and_runs() -> None:
    assert [job for job, _ in commands(PAGE)] == ["distill", "plan", "plan", "distill"]


@pytest.mark.parametrize("name", ["README.md", "cluster.yaml", "deploy/kuberay.yaml"])
def test_every_other_file_has_the_pages_commands_to_the_letter(name: str) -> None:
    found = [command for command in commands(name) if RECIPE in command[1]]
    if name == "README.md":  # which also plans without a cluster
        found = [command for command in found if "--assets_root" in command[1]]
    assert found and set(found) <= set(commands(PAGE))
    assert any(job == "distill" for job, _ in found)


@pytest.mark.parametrize("name", ["README.md", "cluster.yaml", "deploy/kuberay.yaml", PAGE])
def test_the_line_that_submits_is_the_pages(name: str) -> None:
    page = (ROOT / PAGE).read_text()
    lines = re.findall(r"ray job submit [^\n]*assets_root[^\n]*", (ROOT / name).read_text())
    assert all(line in page for line in lines)
    assert lines or name.endswith("kuberay.yaml")


FILES = ("README.md", "cluster.yaml", "deploy/kuberay.yaml", PAGE, "docs/operations.md")
DRY = ("distill", "plan", "curate")
"""Jobs that need no run before them."""
ALL = sorted({pair for name in FILES for pair in commands(name) if pair[0] in DRY})


@pytest.mark.parametrize(("job", "arguments"), ALL)
def test_each_command_passes_a_dry_run(apart: None, job: str, arguments: str) -> None:
    status, said = run(job, f"{arguments} --dry-run")
    assert status == 0, said


def test_a_command_that_names_no_assets_would_train_on_nothing(apart: None) -> None:
    (arguments,) = {flags for job, flags in commands(PAGE) if job == "distill" and RECIPE in flags}
    _, said = run("distill", f"{arguments} --dry-run")
    assert "/mnt/shared/weights/magic141" in said
    assert shlex.split(arguments)[2:4] == ["--assets_root", "/mnt/shared"]
    _, said = run("distill", f"--recipe {RECIPE} --dry-run")
    assert "no weights" in said and "data/weights/magic141" in said


def test_the_figures_of_the_page_are_the_planners() -> None:
    from magicdistill.platform.config.recipe import load_recipe
    from magicdistill.platform.planning.budget import budget
    from magicdistill.platform.planning.plan import plan

    made = plan(load_recipe(RECIPE))
    costs, page = budget(made), " ".join((ROOT / PAGE).read_text().split())
    assert costs is not None and made.seconds_per_cycle is not None
    for figure in (
        f"{made.seconds_per_cycle:.0f} s a cycle at {100 * made.mfu:.0f} %",
        f"{made.seconds_per_cycle * 600 / 3600:.1f} hours for 600 cycles",
        f"{costs.gpu_hours:.0f} GPU-hours of computation",
        f"up to {costs.num_windows:,} windows ({costs.cache_bytes / 1e9:.0f} GB)",
        f"five checkpoints of {costs.checkpoint_bytes / 1e9:.0f} GB",
    ):
        assert figure in page, figure
    assert costs.num_checkpoints == 5
