"""The benchmarks measure what they say."""

import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, step
from benchmarks.gpu_parts import stages
from benchmarks.gpu_parts.results import Bench, Row
from magicdistill.models.diffusion.rng import Rng
from magicdistill.platform.data.stream_source import open_batches
from magicdistill.platform.planning.gpu_rates import MeasuredRates
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.training.worker import Worker

ROOT = Path(__file__).parents[3]
WITHOUT_COMPILER = [part for part in gpu.WITHOUT_RAY if part != "compile"]


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


@pytest.mark.long
def test_gpu_runs_through_at_a_tiny_size_and_tells_what_fails(tmp_path: Path) -> None:
    """In a process of its own: the very command, without its part under Ray."""
    out = tmp_path / "gpu.json"
    command = [sys.executable, "benchmarks/gpu.py", "--tiny", "--repeats", "1", "--out", str(out)]
    kernels = ["--kernels", "sdpa", "flash3", "--parts", *WITHOUT_COMPILER]
    made = subprocess.run(
        [*command, *kernels],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    rows = json.loads(out.read_text())["rows"]
    assert "rates" not in json.loads(out.read_text()), "a tiny size says nothing of a GPU"
    assert {row["part"] for row in rows} == set(WITHOUT_COMPILER)
    failed = [row for row in rows if row["problem"] is not None]
    if not torch.cuda.is_available():
        assert {row["kernel"] for row in failed} == {"flash3"}, made.stdout
        assert "flash_attn_interface" in failed[0]["problem"] and "FAILED" in made.stdout
    found = {row["what"]: row for row in rows if row["kernel"] != "flash3"}
    for name in ("double block", "single block, recomputed", "attention alone"):
        assert found[name]["backward_s"] > 0 and found[name]["operations"] > 0
    assert "planned" in found["ZeRO-3, nano"]["note"]
    assert found["portrait-tiny on both devices"]["note"].startswith("6 losses")
    assert "differs by 0" in found["first frames, painted"]["note"], made.stdout


def test_a_stage_that_ran_elsewhere_or_differs_is_a_problem(tmp_path: Path) -> None:
    bench = gpu.make_bench(tmp_path, ("sdpa",), 1, tiny=True)
    results = iter([[1.0], [1.5]])

    def drifting(num_gpus: int) -> list[float]:
        torch.nn.Linear(1, 1, device=bench.device)(torch.zeros(1, device=bench.device))
        return next(results)

    drifts = stages.compared(bench, "drifting", stages.Stage(drifting, 0.1))
    assert drifts.problem == "differs from the processor's result by 0.33 of it"
    idle = stages.compared(bench, "idle", stages.Stage(lambda _: [1.0], 0))
    assert idle.problem == "networks ran on nothing"
    assert stages.difference([1.0, 2.0], [1.0]) == math.inf


def test_what_a_stage_raises_becomes_its_row_and_leaves_the_others() -> None:
    def broken() -> Row:
        raise OSError("no such\nfolder")

    assert stages.attempt("broken", broken).problem == "OSError: no such folder"


def test_a_part_that_takes_too_long_or_fails_becomes_a_row(tmp_path: Path) -> None:
    bench = gpu.make_bench(tmp_path, ("sdpa",), 1, tiny=True)

    def sleepy(bench: Bench) -> Iterator[Row]:
        yield Row("first")
        time.sleep(5)

    def broken(bench: Bench) -> Iterator[Row]:
        yield Row("first")
        raise OSError("no such device")

    slow, failed = (
        list(gpu.rows_of("part", gpu.Part(measure, 1), bench)) for measure in (sleepy, broken)
    )
    assert [row.problem for row in slow] == [None, "TimeoutError: not through after 1 s"]
    assert [row.problem for row in failed] == [None, "OSError: no such device"]


def test_all_parts_together_take_at_most_eight_minutes() -> None:
    assert sum(part.limit_s for part in gpu.PARTS.values()) <= 480


def test_measured_rates_are_those_that_plans_read() -> None:
    attention = Row("attention alone", "flash", forward_s=2.0, backward_s=4.0, operations=7e12)
    found = {
        "kernels": [attention, Row("attention alone", "cudnn", problem="there is none")],
        "rates": [
            Row("product of matrices", forward_s=0.5, operations=3e14),
            Row("sum of two tensors", forward_s=0.1, note="2.5 TB/s"),
        ],
    }
    assert gpu.rates_of(found) == {
        "attention": {"flash": (1e12, 1.25e12)},
        "linear": 6e14,
        "memory": 2.5e12,
    }
    assert MeasuredRates.model_validate({"gpu": "h100"} | gpu.rates_of(found)).linear == 6e14


def test_every_file_that_names_cuda_says_which_part_runs_it() -> None:
    folders = ("platform", "models", "data_pipeline", "jobs")
    files = (file for folder in folders for file in (ROOT / folder).rglob("*.py"))
    naming = {str(f.relative_to(ROOT)) for f in files if re.search(r"cuda\b", f.read_text())}
    assert gpu.CUDA_PATHS.keys() == naming
    assert set(gpu.CUDA_PATHS.values()) <= set(gpu.PARTS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_refuses_a_machine_without_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit) as stop:
        gpu.main()
    assert stop.value.code == 2
    assert "finds none; --tiny runs anywhere" in capsys.readouterr().err


def test_a_whole_preset_takes_the_papers_tokens(tmp_path: Path) -> None:
    bench = gpu.make_bench(tmp_path, ("sdpa",), 1, tiny=False)
    assert bench.sample("magic141-13b").video_tokens == 67_320
