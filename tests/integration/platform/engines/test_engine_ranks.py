"""Numbers of every engine on two ranks: sums of gradients, clipping by group, averaged weights."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from pydantic import TypeAdapter
from torch import Tensor, multiprocessing, nn

from magicdistill.models.objectives.types import ParameterGroup
from magicdistill.platform.checkpoints.role_weights import role_weights
from magicdistill.platform.config.sections import EngineConfig, OptimizerConfig
from magicdistill.platform.engines.ema import Ema
from magicdistill.platform.engines.engine import Engine, build_engine

CONFIGS: TypeAdapter[Any] = TypeAdapter(EngineConfig)
NUM_RANKS, NUM_UPDATES, FACTOR = 2, 3, 1e4
NUM_MICRO_BATCHES = 32
CLIP_NORM = 0.05
# A large eps makes the steps as long as the clipped gradients, which Adam would hide.
OPTIMIZER = OptimizerConfig(lr=0.1, eps=10.0, clip_norm=CLIP_NORM)
BF16 = {"precision": "bf16"}
ENGINES: dict[str, dict[str, Any]] = {
    "torch fp32": {"kind": "torch"},
    **{f"zero-{stage} fp32": {"zero_stage": stage} for stage in (0, 1, 2, 3)},
    "torch bf16": {"kind": "torch"} | BF16,
    **{f"zero-{stage} bf16": {"zero_stage": stage} | BF16 for stage in (1, 2, 3)},
    "zero-1 host bf16": {"zero_stage": 1, "offload_optimizer": True} | BF16,
    "zero-3 host bf16": {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True}
    | BF16,
    "zero-3 whole fp32": {"zero_stage": 3, "whole_numel": 20},
    "zero-3 whole bf16": {"zero_stage": 3, "whole_numel": 20} | BF16,
}


class Two(nn.Module):
    """Two parts; the loss of one has a factor, as a LoRA's beside a discriminator has."""

    def __init__(self) -> None:
        super().__init__()
        self.scaled, self.plain = nn.Linear(6, 5, bias=False), nn.Linear(6, 3)
        self.to(
            torch.bfloat16
        ).float()  # all engines start alike: DeepSpeed rounds before it copies

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.scaled(x).square().mean(), self.plain(x).square().mean()
        return FACTOR * one.float() + other.float()

    def groups(self) -> dict[str, ParameterGroup]:
        scaled = ParameterGroup(list(self.scaled.parameters()), FACTOR)
        return {"scaled": scaled, "plain": ParameterGroup(list(self.plain.parameters()))}


class Found(NamedTuple):
    """What one rank saw of one engine."""

    sum_norm: float
    norms: list[dict[str, float]]
    outside: tuple[float, float]
    """The loss before and after the averaged weights were in force."""
    inside: float
    reloaded: float
    """The loss after one more update and a return to what was saved before."""


def data(dtype: torch.dtype) -> Tensor:
    """Samples (4 6) by update, micro-batch and rank."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(NUM_UPDATES, 2, NUM_RANKS, 4, 6, generator=generator).to(dtype)


def config_of(name: str) -> Any:
    return CONFIGS.validate_python({"kind": "deepspeed"} | ENGINES[name])


def dtype_of(config: Any) -> torch.dtype:
    return torch.bfloat16 if config.precision == "bf16" else torch.float32


def norm_of_many_gradients(config: Any, rank: int) -> float:
    """Average 256 and many ones: each by itself is lost in a bfloat16 that holds 256."""
    module = nn.Linear(1, 1, bias=False)
    engine = build_engine(config, module, OPTIMIZER, num_micro_batches=NUM_MICRO_BATCHES)
    for micro in range(NUM_MICRO_BATCHES):
        x = torch.tensor([[1.0 if rank or micro else 256.0]], dtype=dtype_of(config))
        engine.backward(engine(x).sum(), last=micro + 1 == NUM_MICRO_BATCHES)
    return engine.step()["grad_norm"]


def train(config: Any, rank: int, folder: Path) -> Found:
    """Train, and save the weights, their average, and the weights after that was in force."""
    torch.manual_seed(0)
    module = Two()
    groups = module.groups()
    engine = build_engine(config, module, OPTIMIZER, num_micro_batches=2, groups=groups)
    average = Ema("net", engine, 0.5)
    x = data(dtype_of(config))
    norms = []
    for update in x:
        for micro in (0, 1):
            engine.backward(engine(update[micro, rank]), last=micro == 1)
        norms.append(engine.step())
        average.update()
    before = loss_of(engine, x[0, 0, 0])
    for name, state in {"net": engine, "ema": average}.items():
        state.snapshot().write(folder / name)
    with average.swapped():
        inside = loss_of(engine, x[0, 0, 0])
    after = loss_of(engine, x[0, 0, 0])
    engine.snapshot().write(folder / "again")
    engine.backward(engine(x[0, 0, rank]), last=True)
    engine.step()
    assert loss_of(engine, x[0, 0, 0]) != before
    dist.barrier()  # both ranks have written what each reads
    engine.load(folder / "net")
    reloaded = loss_of(engine, x[0, 0, 0])
    return Found(norm_of_many_gradients(config, rank), norms, (before, after), inside, reloaded)


@torch.no_grad()
def loss_of(network: Engine | nn.Module, x: Tensor) -> float:
    return float(network(x))


def run_rank(rank: int, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(NUM_RANKS)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=NUM_RANKS
    )
    found = {name: tuple(train(config_of(name), rank, folder / name)) for name in ENGINES}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    os.environ["DS_ACCELERATOR"] = "cpu"
    multiprocessing.set_forkserver_preload([__name__])  # one process imports for both
    multiprocessing.start_processes(
        run_rank, (folder,), nprocs=NUM_RANKS, start_method="forkserver"
    )
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, list[Found]]:
    """What both ranks saw, by engine."""
    ranks = [torch.load(folder / f"{rank}.pt") for rank in range(NUM_RANKS)]
    return {name: [Found(*rank[name]) for rank in ranks] for name in ENGINES}


def weights(folder: Path, engine: str, what: str) -> dict[str, Tensor]:
    return {name: read() for name, read in role_weights(folder / engine / what).items()}


@pytest.mark.parametrize("name", ENGINES)
def test_gradients_of_many_micro_batches_and_ranks_are_added_up_in_float32(
    name: str, found: dict[str, list[Found]]
) -> None:
    count = NUM_MICRO_BATCHES * NUM_RANKS
    assert [rank.sum_norm for rank in found[name]] == [(256 + count - 1) / count] * NUM_RANKS


@pytest.mark.parametrize("name", ENGINES)
def test_each_group_is_clipped_by_itself_on_every_engine(
    name: str, folder: Path, found: dict[str, list[Found]]
) -> None:
    reference = f"torch {name.split()[-1]}"
    assert found[name][0].norms == found[name][1].norms
    for ours, theirs in zip(found[name][0].norms, found[reference][0].norms, strict=True):
        assert ours == pytest.approx(theirs, rel=5e-3 if "bf16" in name else 1e-4)
        assert min(ours.values()) > 4 * CLIP_NORM  # the limit is in force for both
    expected, trained = (weights(folder, engine, "net") for engine in (reference, name))
    assert trained.keys() == expected.keys() == dict(Two().named_parameters()).keys()
    torch.manual_seed(0)
    start = dict(Two().named_parameters())
    for key, value in expected.items():
        step = (value - start[key]).norm()
        assert (trained[key] - value).norm() < (0.05 if "bf16" in name else 1e-4) * step, key


@pytest.mark.parametrize("name", ENGINES)
def test_forwards_read_what_was_loaded(name: str, found: dict[str, list[Found]]) -> None:
    assert all(rank.reloaded == rank.outside[0] for rank in found[name])


@pytest.mark.parametrize("name", ENGINES)
def test_the_average_is_of_the_master_weights_on_every_engine(
    name: str, folder: Path, found: dict[str, list[Found]]
) -> None:
    before, average, after = (weights(folder, name, what) for what in ("net", "ema", "again"))
    assert all(torch.equal(after[key], value) for key, value in before.items())
    dtype, module = dtype_of(config_of(name)), Two()
    module.load_state_dict(average)
    expected = loss_of(module.to(dtype), data(dtype)[0, 0, 0])
    for rank in found[name]:
        assert rank.outside[0] == rank.outside[1] != rank.inside
        assert rank.inside == pytest.approx(expected, rel=1e-5)
    for key, value in average.items():
        assert value.dtype == torch.float32
        assert not torch.equal(value, value.bfloat16().float()), key
    reference = weights(folder, f"torch {name.split()[-1]}", "ema")
    torch.testing.assert_close(average, reference, rtol=0, atol=1e-2 if "bf16" in name else 1e-6)
