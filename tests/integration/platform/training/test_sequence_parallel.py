"""Cycles on sequence groups are the cycles of one worker with the whole batch."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing

from magicdistill.models.methods.magic_gt import MagicGtMethod
from magicdistill.models.networks.attention import set_kernels
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.config import KernelsConfig, LoraConfig
from magicdistill.models.networks.critic import Critic
from magicdistill.models.networks.sequence_parallel import join_sequence_group
from magicdistill.models.networks.transformer import (
    VelocityModel,
    build_transformer,
    copy_transformer,
)
from magicdistill.models.objectives.distribution_matching import DistributionMatching
from magicdistill.models.objectives.types import Batch
from magicdistill.platform.config.sections import OptimizerConfig, ScheduleConfig, TorchEngineConfig
from magicdistill.platform.data.batches import deal
from magicdistill.platform.engines.engine import build_engine
from magicdistill.platform.training.loop import Loop
from tests.tiny import tiny_shapes

SHAPES = tiny_shapes(num_attention_heads=4, num_text_tokens=5)
METHOD = MagicGtMethod(name="magic-gt", num_fake_updates=2, ground_truth_weight=0.2)
# Adam divides by the root of the second moment: a large eps keeps rounding errors small.
OPTIMIZER = OptimizerConfig(lr=1e-2, eps=1e-2)
SCHEDULE = ScheduleConfig(
    num_cycles=3,
    batch_size=4,
    num_micro_batches=2,
    optimizers={"generator": OPTIMIZER, "critic": OPTIMIZER},
)


def sample(position: int) -> tuple[Tensor, Conditions]:
    generator = torch.Generator().manual_seed(position)
    x0 = torch.randn(1, 4, 3, 4, 8, generator=generator)
    conditions = Conditions(
        text=torch.randn(1, 5, 6, generator=generator),
        text_mask=torch.arange(5)[None] <= position % 5,
        pooled=torch.randn(1, 6, generator=generator),
        image_prior=x0[:, :, :1],
    )
    return x0, conditions


def train(rank: int, world_size: int, sequence_parallel: int) -> tuple[list, list[Tensor]]:
    """Return the metrics of every cycle and the trained parameters."""
    torch.manual_seed(0)
    base = build_transformer(SHAPES)
    generator = VelocityModel(copy_transformer(base))
    critic = Critic(base, LoraConfig(rank=2), adversarial=True)
    method = DistributionMatching(METHOD, generator, critic)
    group = join_sequence_group(sequence_parallel)
    for module in method.modules.values():
        set_kernels(module, KernelsConfig(recompute_blocks="full"), group)
    positions = deal(SCHEDULE, sequence_parallel, rank=rank, world_size=world_size)

    def batches(step: int, micro: int) -> Batch:
        samples = [sample(position) for position in positions(step, micro)]
        x0, conditions = zip(*samples, strict=True)
        return Batch(torch.cat(x0), Conditions.cat(conditions), positions(step, micro))

    num_micro_batches = SCHEDULE.num_micro_batches
    engines = {
        role: build_engine(
            TorchEngineConfig(), module, OPTIMIZER, num_micro_batches=num_micro_batches
        )
        for role, module in method.modules.items()
    }
    loop = Loop(method, engines, batches, seed=0, num_micro_batches=num_micro_batches)
    metrics = [loop.cycle(cycle) for cycle in range(SCHEDULE.num_cycles)]
    modules = method.modules.values()
    return metrics, [p.detach() for m in modules for p in m.parameters() if p.requires_grad]


def run_rank(rank: int, folder: Path, world_size: int, sequence_parallel: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size
    )
    torch.save(train(rank, world_size, sequence_parallel), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone() -> tuple[list, list[Tensor]]:
    return train(0, 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_ranks", "size"), [(4, 2), pytest.param(4, 4, marks=pytest.mark.long)]
)
def test_cycles_on_sequence_groups_equal_those_of_one_worker(num_ranks, size, alone, tmp_path):
    multiprocessing.set_forkserver_preload([__name__])  # one process imports for all ranks
    multiprocessing.start_processes(
        run_rank, (tmp_path, num_ranks, size), nprocs=num_ranks, start_method="forkserver"
    )
    metrics, parameters = alone
    for rank in range(num_ranks):
        found, trained = torch.load(tmp_path / f"{rank}.pt")
        for ours, theirs in zip(found, metrics, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
        torch.testing.assert_close(trained, parameters, atol=1e-4, rtol=1e-3)
