"""Training on pairs: made on the fly or stored, undisturbed or not, the losses are the same."""

from pathlib import Path

import pytest

from tests.integration.platform.training.test_survival import distill, losses

RECIPE = """
extends: portrait-tiny-smoke
evaluation: null
method:
  name: magic
  sampler: {num_steps: 1}
  num_fake_updates: 1
  warmup_cycles: 0
  pairs: {num_cycles: 8}
pairs: {generator: assets/portrait-tiny/teacher, sampler: {num_steps: 2}}
schedule:
  num_cycles: 8
  checkpoint_every: 3
  sample_every: null
engine: {kind: torch, precision: fp32}
cluster: {num_workers: 2, dashboard: false}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    (root / "pairs.yaml").write_text(RECIPE)
    return root


@pytest.fixture(scope="module")
def undisturbed(root) -> list[dict[str, float]]:
    with distill(root, "--recipe", str(root / "pairs.yaml")) as job:
        output = job.end()
    assert job.process.returncode == 0, output
    rows = list(job.run.metrics())
    assert all(row["supply/made_per_second"] > 0 for row in rows)
    for name, ends in {"pair_weight": [1.0, 0.25], "dmd_weight": [0.25, 1.0]}.items():
        assert [row[f"generator/{name}"] for row in rows][:: len(rows) - 1] == ends
    return losses(job.run)


@pytest.mark.long
def test_stored_pairs_train_like_those_made_on_the_fly(root, undisturbed):
    recipe = ("--recipe", str(root / "pairs.yaml"))
    with distill(root, *recipe, "--save_pairs", str(root / "stored")) as job:
        output = job.end()
    assert job.process.returncode == 0, output
    version = output.split("--pairs.stored ")[1].split()[0]
    with distill(root, *recipe, "--pairs.stored", version) as job:
        output = job.end()
    assert job.process.returncode == 0, output
    assert losses(job.run) == undisturbed


@pytest.mark.long
def test_a_killed_worker_does_not_shift_the_pairs(root, undisturbed):
    with distill(root, "--recipe", str(root / "pairs.yaml")) as job:
        job.wait_for("starting the training workers")
        job.wait_for_cycle(5)
        job.workers()[0].kill()
        output = job.end()
    assert job.process.returncode == 0, output
    assert "continuing after cycle 3" in output
    assert losses(job.run) == undisturbed
