"""A LoRA student and its critic on one frozen base: two ranks train the same on every engine."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing

from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.models.networks.presets import PRESETS
from magicdistill.models.networks.state_dicts import WRAPPER
from magicdistill.models.networks.transformer import build_transformer, load_transformer
from magicdistill.models.networks.weights import save_transformer
from magicdistill.platform.checkpoints.checkpoint_folder import checkpoint_name
from magicdistill.platform.checkpoints.checkpoints import EMA
from magicdistill.platform.checkpoints.role_weights import role_weights
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.training.worker import Worker
from tests.integration.platform.engines.prefetching_job import counting
from tests.tiny_run import tiny_recipe, write_cache

NUM_RANKS = 2
BF16 = {"precision": "bf16"}
ENGINES: dict[str, dict[str, Any]] = {
    "torch": {"kind": "torch"},
    "zero-2": {"kind": "deepspeed", "zero_stage": 2},
    "zero-3 split": {"kind": "deepspeed", "zero_stage": 3, "whole_numel": 200},
    "torch bf16": {"kind": "torch"} | BF16,
    "zero-3 bf16": {"kind": "deepspeed", "zero_stage": 3} | BF16,
}
"""Engines by name; `split` lets the ranks share each sample."""
ROLES = ("generator", "critic", EMA)
# A large eps makes the steps as long as the gradients, whose rounding Adam would magnify.
OPTIMIZER = {"lr": 0.5, "eps": 0.1, "clip_norm": None}


def recipe_of(name: str, teacher: Path) -> Recipe:
    model = {"preset": "nano", "teacher": str(teacher)}
    values = tiny_recipe(2, model=model).model_dump()
    values["method"] |= {"num_fake_updates": 1, "student": {"kind": "lora", "rank": 4}}
    values["method"]["sampler"]["num_steps"] = 2
    values["schedule"] |= {"num_cycles": 2, "ema_decay": 0.5, "num_micro_batches": 1}
    values["schedule"]["optimizers"] = dict.fromkeys(("generator", "critic"), OPTIMIZER)
    values |= {"engine": ENGINES[name], "health": {"action": "off"}, "evaluation": None}
    values["cluster"]["sequence_parallel"] = 2 if "split" in name else 1
    values["kernels"]["recompute_blocks"] = "full" if "split" in name else "none"
    return Recipe.model_validate(values)


def worker_of(run: RunDirectory, data: AnyPath, rank: int) -> Worker:
    return Worker(run, data, None, rank=rank, world_size=NUM_RANKS)


def train(name: str, folder: Path, data: AnyPath, rank: int) -> dict[str, Any]:
    """Train for two cycles, and the second one again from the checkpoint after the first."""
    if rank == 0:
        RunDirectory.create(folder, recipe_of(name, folder / "teacher"), name)
    dist.barrier()
    run = RunDirectory(folder / name)
    worker, found = worker_of(run, data, rank), Counter[str]()
    shared = set(worker.engines["generator"].module.parameters()) & set(
        worker.engines["critic"].module.parameters()
    )
    with counting(found):
        worker.loop.cycle(0)
        worker.checkpointer.save(1)
        worker.loop.cycle(1)
    worker.checkpointer.save(2)
    again = worker_of(RunDirectory(folder / name), data, rank)
    again.checkpoints.folder = folder / name / "again"
    dist.barrier()
    for role, engine in again.engines.items():
        engine.load(run.checkpoints / checkpoint_name(1) / role)
    assert again.ema is not None
    again.ema.load(run.checkpoints / checkpoint_name(1) / EMA)
    again.loop.cycle(1)
    again.checkpointer.save(2)
    again.method.save(folder / name / "model", again.placement)
    return {"num_shared": len(shared), "invalidated": found["invalidated"]}


def run_rank(rank: int, folder: Path, data: AnyPath) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(NUM_RANKS)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=NUM_RANKS
    )
    torch.save({name: train(name, folder, data, rank) for name in ENGINES}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    torch.manual_seed(0)
    teacher = build_transformer(PRESETS["nano"].transformer)
    save_transformer(teacher, folder / "teacher", torch.float32)
    data = write_cache(folder / "latents", (16, 3, 4, 4), num_rows=8)
    os.environ["DS_ACCELERATOR"] = "cpu"
    multiprocessing.set_forkserver_preload([__name__])  # one process imports for both
    multiprocessing.start_processes(
        run_rank, (folder, data), nprocs=NUM_RANKS, start_method="forkserver"
    )
    return folder


def weights(folder: Path, name: str, role: str, *, again: bool = False) -> dict[str, Tensor]:
    place = "again" if again else "checkpoints"
    found = role_weights(folder / name / place / checkpoint_name(2) / role)
    return {key: read() for key, read in found.items()}


@pytest.mark.parametrize("name", ENGINES)
def test_a_lora_student_and_its_critic_train_alike_on_every_engine(name: str, folder: Path) -> None:
    is_rounded = "bf16" in name
    for role in ROLES:
        expected = weights(folder, "torch bf16" if is_rounded else "torch", role)
        trained = weights(folder, name, role)
        assert trained.keys() == expected.keys()
        branches = [key for key in trained if "lora_B" in key]
        assert branches and all(expected[key].norm() > 0 for key in branches)  # zero at the start
        for key in branches:
            distance = (trained[key] - expected[key]).norm() / expected[key].norm()
            assert distance < (0.2 if is_rounded else 1e-3), (role, key)


@pytest.mark.parametrize("name", ENGINES)
def test_a_resumed_lora_student_goes_on_to_the_bit(name: str, folder: Path) -> None:
    for role in ROLES:
        first, again = (weights(folder, name, role, again=resumed) for resumed in (False, True))
        assert all(torch.equal(again[key], tensor) for key, tensor in first.items())


@pytest.mark.parametrize("name", ENGINES)
def test_a_lora_student_holds_no_base_of_its_own(name: str, folder: Path) -> None:
    generator = weights(folder, name, "generator")
    assert generator and all("lora_" in key for key in generator)
    num_base = len(list(load_transformer(folder / "teacher").parameters()))
    for rank in range(NUM_RANKS):
        found = torch.load(folder / f"{rank}.pt")[name]
        assert found == {"num_shared": num_base, "invalidated": 0}


@pytest.mark.parametrize("name", ["torch", "zero-3 split"])
def test_the_model_of_a_lora_student_is_the_teacher_with_the_branch_merged(
    name: str, folder: Path
) -> None:
    branch = weights(folder, name, "generator", again=True)
    base, found = (load_transformer(folder / at) for at in ("teacher", f"{name}/model"))
    written = dict(found.named_parameters())
    for key, weight in base.named_parameters():
        parts: list[Any] = [
            branch.get(f"{WRAPPER}{key.removesuffix('.weight')}.lora_{part}.default.weight")
            for part in "BA"
        ]
        expected = weight if None in parts else weight + parts[0] @ parts[1]
        assert torch.equal(written[key], expected.half().float()), key
