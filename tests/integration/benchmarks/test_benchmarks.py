"""The benchmarks measure what they say."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, step
from magicdistill.models.diffusion.rng import Rng
from magicdistill.platform.data.stream_source import open_batches
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.training.worker import Worker

ROOT = Path(__file__).parents[3]


def test_the_bare_loop_computes_the_platforms_losses(tmp_path: Path) -> None:
    recipe = step.bench_recipe("torch", batch_size=2)
    cache = step.write_cache(tmp_path / "cache")
    worker = Worker(RunDirectory.create(tmp_path, recipe), cache, None, rank=0, world_size=1)
    bare = step.bare_loop(recipe)
    batches = open_batches(recipe, cache, rank=0, world_size=1, device="cpu")
    for cycle in range(2):
        batch = batches(cycle, 0)

        def rng(update: int, cycle: int = cycle, batch: Any = batch) -> Rng:
            return Rng(recipe.seed, cycle, update, batch.positions)

        metrics = worker.loop.cycle(cycle)
        losses = bare.cycle(batch, rng)
        for name in ("generator/dmd", "generator/adversarial"):
            assert losses[name] == pytest.approx(metrics[name], rel=1e-4)
    assert worker.ema is not None
    for mine, its in zip(bare.average, worker.ema.average, strict=True):
        torch.testing.assert_close(mine.flatten(), its)  # engines keep flat tensors


@pytest.mark.long
def test_step_writes_its_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "step.json"
    monkeypatch.setattr(
        sys, "argv", ["step", "--repeats", "1", "--batch_size", "2", "--out", str(out)]
    )
    step.main()
    result = json.loads(out.read_text())
    assert len(result["pairs"]) == 4 and result["versions"]["torch"]
    assert all(pair["cpu_ratio"] > 0 for pair in result["pairs"])
    assert "platform cycle / bare PyTorch loop" in capsys.readouterr().out


@pytest.mark.long
def test_few_steps_are_as_much_faster_as_they_are_fewer(tmp_path: Path) -> None:
    """In a process of its own: pytest's checks of shapes take time, and do not compile."""
    out = tmp_path / "sampling.json"
    command = [sys.executable, "benchmarks/sampling.py", "--repeats", "3", "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    made = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    rows = {name: row["cpu"] for name, row in json.loads(out.read_text())["seconds"].items()}
    guided = rows["28 steps, guided, 8 at once"]
    assert guided > 12 * rows["4 steps, 8 at once"]
    assert guided > 40 * rows["1 step, 8 at once"]
    assert rows["image to latents, 4"] < 1.2 * rows["diffusers' own, 4"]
    assert "28 steps, guided / 4 steps" in made.stdout


def test_gpu_measures_blocks_and_a_whole_preset_at_a_tiny_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--repeats", "1", "--out", str(out)])
    gpu.main()
    rows = json.loads(out.read_text())["rows"]
    found = {(row["what"], row["kernel"]): row for row in rows}
    assert len(found) == 7 and "rates" not in json.loads(out.read_text())
    for kernel in ("sdpa", "flash"):
        for what in ("double block", "single block"):
            assert found[what, kernel]["backward_s"] > 0 and not found[what, kernel]["problem"]
    assert rows[-1]["what"] == "portrait-tiny" and rows[-1]["operations"] > 0
    if not torch.cuda.is_available():
        assert "FlashAttention 3" in found["double block", "flash3"]["problem"]
    assert "single block" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_refuses_a_machine_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit, match="--tiny runs it anywhere"):
        gpu.main()


def test_a_whole_preset_takes_the_papers_tokens() -> None:
    bench = gpu.full_bench(repeats=1)
    assert bench.sample("magic141-13b").video_tokens == 67_320
