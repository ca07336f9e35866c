"""Engines, ranks and micro-batches change nothing but rounding, also in the middle of a run."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from magicdistill.models.networks.presets import PRESETS
from magicdistill.models.networks.transformer import build_transformer
from magicdistill.models.networks.weights import save_transformer
from magicdistill.platform.checkpoints.checkpoints import Checkpoints
from magicdistill.platform.checkpoints.flat_shards import FlatShardReader
from magicdistill.platform.config.recipe import Recipe, load_recipe
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.training.worker import Worker
from tests.tiny_run import write_cache

ROLES = ("generator", "critic", "ema")
KINDS = ("weight", "exp_avg", "exp_avg_sq")
TORCH = {"kind": "torch"}
OFFLOADED = {"precision": "bf16", "offload_optimizer": True, "offload_parameters": True}
FIRST, CYCLES = 1, 2
LOSSES = (
    *("critic/fake_score", "critic/discriminator", "critic/lora/grad_norm"),
    *("critic/discriminator/grad_norm", "generator/dmd", "generator/adversarial"),
    "generator/grad_norm",
)


def zero(stage: int, **options: str | bool) -> dict:
    return {"kind": "deepspeed", "zero_stage": stage, **options}


@dataclass(frozen=True)
class Trial:
    """A run on a number of ranks; with `source` it starts from that one's checkpoint."""

    name: str
    engine: dict
    source: str | None = None
    num_micro_batches: int = 1
    num_cycles: int = CYCLES
    only_copies: bool = False
    """Loads the checkpoint and saves it as the next one."""


def recipe_of(trial: Trial, num_ranks: int, teacher: Path) -> Recipe:
    # Adam divides by the root of the second moment: a large eps keeps rounding errors small.
    optimizer = {"lr": 1e-2, "eps": 1e-2, "warmup_steps": 3, "decay_steps": 8}
    values = load_recipe("portrait-tiny-smoke").model_dump(exclude={"engine"})
    values["schedule"] |= {
        "num_cycles": trial.num_cycles,
        "batch_size": 4,
        "num_micro_batches": trial.num_micro_batches,
        "checkpoint_every": FIRST,
        "keep_checkpoints": CYCLES,
        "ema_decay": 0.9,
        "optimizers": {"generator": optimizer, "critic": optimizer},
    }
    values["method"] |= {"num_fake_updates": 1, "warmup_cycles": 0}
    values["method"]["sampler"] |= {"num_steps": 2}
    values["cluster"]["num_workers"] = num_ranks
    values["model"] = {"preset": "nano", "teacher": str(teacher)}
    return Recipe.model_validate(values | {"engine": trial.engine})


def run_rank(rank: int, folder: Path, num_ranks: int, trials: list[Trial]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/{trials[0].name}", rank=rank, world_size=num_ranks
    )
    for trial in trials:
        run_trial(folder, trial, rank, num_ranks)
    dist.destroy_process_group()


def run_trial(folder: Path, trial: Trial, rank: int = 0, num_ranks: int = 1) -> None:
    path = folder / "runs" / trial.name
    if rank == 0:
        RunDirectory.create(
            folder / "runs", recipe_of(trial, num_ranks, folder / "teacher"), trial.name
        )
        if trial.source:
            first = Path("checkpoints", f"cycle-{FIRST:07d}")
            shutil.copytree(folder / "runs" / trial.source / first, path / first)
    if num_ranks > 1:
        dist.barrier()
    (cache,) = folder.glob("cache/versions/*")
    worker = Worker(RunDirectory(path), cache, None, rank=rank, world_size=num_ranks)
    if trial.only_copies:
        cycle = worker.checkpoints.load_latest(worker.engines, worker.ema)
        worker.checkpoints.save(cycle + 1, worker.engines, worker.ema)
    else:
        worker.run_all()


TWO_RANKS = [
    Trial("zero-3", zero(3)),
    Trial("zero-3 again", zero(3), source="zero-3"),
    Trial("torch to zero-3", zero(3), source="torch", num_micro_batches=2),
    Trial("torch to zero-2", zero(2), source="torch", only_copies=True),
    Trial("bf16 zero-3", zero(3, precision="bf16"), num_cycles=FIRST),
]
ONE_RANK = [
    Trial("zero-0", zero(0)),
    Trial("zero-3 to zero-2", zero(2), source="zero-3", num_micro_batches=4),
    Trial("zero-2 to zero-0", zero(0), source="torch to zero-2", only_copies=True),
    Trial("bf16 zero-3 to torch", TORCH | {"precision": "bf16"}, "bf16 zero-3", only_copies=True),
    Trial("bf16 zero-3 to zero-1", zero(1, precision="bf16"), "bf16 zero-3", only_copies=True),
    Trial("bf16 zero-3 to host", zero(3, **OFFLOADED), "bf16 zero-3", only_copies=True),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("layouts")
    write_cache(folder / "cache", (16, 2, 4, 4), num_rows=6)
    torch.manual_seed(0)
    save_transformer(build_transformer(PRESETS["nano"].transformer), folder / "teacher")
    multiprocessing.set_forkserver_preload([__name__])  # one process imports for all ranks
    os.environ["DS_ACCELERATOR"] = "cpu"
    run_trial(folder, Trial("torch", TORCH))
    run_trial(folder, Trial("accumulated", TORCH, num_micro_batches=4))
    for num_ranks, trials in ((2, TWO_RANKS), (1, ONE_RANK)):
        multiprocessing.start_processes(
            run_rank, (folder, num_ranks, trials), nprocs=num_ranks, start_method="forkserver"
        )
    run_trial(folder, Trial("zero-3 to torch", TORCH, source="zero-3"))
    return folder / "runs"


def losses(run: Path) -> list[dict[str, float]]:
    """Return what the training computed, without times and without ratios of means."""
    return [
        {name: value for name, value in row.items() if name in LOSSES}
        for row in RunDirectory(run).metrics()
    ]


def state(run: Path, cycle: int) -> dict[str, torch.Tensor]:
    """Return every value of a checkpoint."""
    (path,) = [p for p in Checkpoints(run / "checkpoints", 9).committed() if str(cycle) in p.name]
    readers = {role: FlatShardReader(path / role) for role in ROLES}
    whole = {
        f"{role}/{kind}/{name}": reader.whole(kind, name)
        for role, reader in readers.items()
        for kind in KINDS
        for name in reader.names(kind)
    }
    assert any("exp_avg_sq" in name for name in whole)
    return whole


@pytest.mark.parametrize("name", ["accumulated", "zero-0", "zero-3"])
def test_engines_ranks_and_accumulation_train_alike(runs, name):
    reference, found = losses(runs / "torch"), losses(runs / name)
    assert len(reference) == CYCLES
    for ours, theirs in zip(found, reference, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    expected, trained = state(runs / "torch", CYCLES), state(runs / name, CYCLES)
    assert trained.keys() == expected.keys()
    before = state(runs / "torch", FIRST)
    for role in ("generator/weight/", "critic/weight/"):  # far more than the tolerance below
        moved = [(v - before[k]).abs().max() for k, v in expected.items() if k.startswith(role)]
        assert max(moved) > 1e-3
    for key, value in expected.items():
        torch.testing.assert_close(trained[key], value, rtol=1e-4, atol=1e-6, msg=key)


def test_a_resumed_run_repeats_the_rest_to_the_last_bit(runs):
    assert losses(runs / "zero-3 again") == losses(runs / "zero-3")[FIRST:]
    expected, found = state(runs / "zero-3", CYCLES), state(runs / "zero-3 again", CYCLES)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize("name", ["torch to zero-3", "zero-3 to zero-2", "zero-3 to torch"])
def test_a_run_goes_on_with_another_engine_on_other_ranks(runs, name):
    for ours, theirs in zip(losses(runs / name), losses(runs / "torch")[FIRST:], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "source"),
    [(trial.name, trial.source) for trial in (*TWO_RANKS, *ONE_RANK) if trial.only_copies],
)
def test_a_change_of_layout_loses_no_bit(runs, name, source):
    expected, found = state(runs / source, FIRST), state(runs / name, FIRST + 1)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_no_rank_saves_what_another_saves(runs):
    path = runs / "zero-3" / "checkpoints" / f"cycle-{FIRST:07d}" / "generator"
    sizes = [file.stat().st_size for file in sorted(path.glob("rank-*"))]
    shapes = json.loads((path / "state.json").read_text())["shapes"]
    numbers = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert len(sizes) == 2
    assert sum(sizes) < 1.05 * 3 * 4 * numbers  # weight and two moments, four bytes each
    assert max(sizes) < 1.02 * min(sizes)
