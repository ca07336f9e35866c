"""What a cycle logs, and health judges, does not depend on how its samples are divided."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from magicdistill.models.methods.registry import METHODS, AnyMethod
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.placement import WHOLE
from magicdistill.models.networks.presets import ModelConfig
from magicdistill.models.objectives.types import Batch, Pair
from magicdistill.platform.config.sections import (
    HealthConfig,
    OptimizerConfig,
    ScheduleConfig,
    Thresholds,
    TorchEngineConfig,
)
from magicdistill.platform.data.batches import deal
from magicdistill.platform.engines.engine import build_engine
from magicdistill.platform.training.loop import Loop, Metrics
from tests.batches import sample

CONFIGS: TypeAdapter[Any] = TypeAdapter(AnyMethod)
# Adam divides by the root of the second moment: a large eps keeps rounding errors small.
OPTIMIZER = OptimizerConfig(lr=1e-2, eps=1e-2)
TWO = {"num_fake_updates": 2, "lora": {"rank": 2}}
ONE_STEP = {"sampler": {"num_steps": 1}, "pairs": {"num_cycles": 2}}
CASES: dict[str, dict[str, Any]] = {
    "vae": {"name": "vae"},
    "finetune": {"name": "finetune", "uniform_share": 0.5},
    "cfg-distill": {"name": "cfg-distill"},
    "lcm": {"name": "lcm", "teacher": {"guidance": 3.0}},
    "dmd": {"name": "dmd", "real_guidance": 3.0} | TWO,
    "dmd2": {"name": "dmd2", "r1_weight": 0.1, "share_rollout": False} | TWO,
    "magic": {"name": "magic"} | ONE_STEP | TWO,
    "magic-gt": {"name": "magic-gt", "ground_truth": "dmd"} | TWO,
    "magic-gt huber": {"name": "magic-gt", "ground_truth": "huber", "cfg_distillation": {}} | TWO,
}
AT_VALIDATIONS = {"dynamic_degree", "saturation", "contrast", "temporal_variance", "drift"}
"""Health terms of the generated clips of a validation, which no micro-batch divides."""


def frames(position: int) -> Tensor:
    generator = torch.Generator().manual_seed(position)
    return (torch.rand(1, 3, 5, 16, 16, generator=generator) - 0.5) / (1 + position % 4)


def cycle(case: str, num_micro_batches: int) -> Metrics:
    """Train a cycle of four samples a batch on the nano network."""
    torch.manual_seed(0)
    config = CONFIGS.validate_python(CASES[case])
    method = config.build(ModelConfig(preset="nano"), WHOLE)
    schedule = ScheduleConfig(
        num_cycles=1, batch_size=4, num_micro_batches=num_micro_batches, optimizers={}
    )
    positions = deal(schedule, 1, rank=0, world_size=1)

    def batches(step: int, micro: int) -> Batch:
        chosen = positions(step, micro)
        if config.data == "pixels":
            return Batch(torch.cat([frames(position) for position in chosen]), None, chosen)
        samples = [sample(position) for position in chosen]
        conditions, nulls, pairs = zip(
            *((one.conditions, one.null, one.pair) for one in samples), strict=True
        )
        pair = Pair(*(torch.cat(tensors) for tensors in zip(*pairs, strict=True)))
        return Batch(
            torch.cat([one.x0 for one in samples]),
            Conditions.cat(conditions),
            chosen,
            Conditions.cat(nulls),
            pair if config.uses_pairs else None,
        )

    engines = {
        role: build_engine(
            TorchEngineConfig(),
            module,
            OPTIMIZER,
            num_micro_batches=num_micro_batches,
            groups=method.parameter_groups(role),
        )
        for role, module in method.modules.items()
    }
    loop = Loop(method, engines, batches, seed=0, num_micro_batches=num_micro_batches)
    return loop.cycle(0)


@pytest.fixture(scope="module")
def whole() -> dict[str, Metrics]:
    return {case: cycle(case, 1) for case in CASES}


@pytest.mark.parametrize("num_micro_batches", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_every_metric_of_a_cycle_is_the_same_however_its_batch_is_divided(
    case: str, num_micro_batches: int, whole: dict[str, Metrics]
) -> None:
    assert cycle(case, num_micro_batches) == pytest.approx(whole[case], rel=1e-3, abs=1e-6)


def test_every_method_and_every_health_term_is_among_the_cases(
    whole: dict[str, Metrics],
) -> None:
    assert {one["name"] for one in CASES.values()} == {*METHODS.names()} - {"euler"}
    judged = {name for name, limits in HealthConfig() if isinstance(limits, Thresholds)}
    found = {metric.rpartition("/")[2] for row in whole.values() for metric in row}
    assert judged - AT_VALIDATIONS <= found
