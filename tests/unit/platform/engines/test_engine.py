"""Numbers of the engine on plain torch: master weights, sums of gradients, clipping by group."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from magicdistill.models.objectives.types import ParameterGroup
from magicdistill.platform.checkpoints.role_weights import role_weights
from magicdistill.platform.config.sections import OptimizerConfig, Precision, TorchEngineConfig
from magicdistill.platform.engines.ema import Ema
from magicdistill.platform.engines.engine import TorchEngine, build_engine

PAPER_LR = 3e-6


def linear_engine(precision: Precision, lr: float = PAPER_LR, **options: Any) -> TorchEngine:
    torch.manual_seed(0)
    return TorchEngine(
        TorchEngineConfig(precision=precision),
        nn.Linear(32, 32),
        OptimizerConfig(lr=lr, **options),
        num_micro_batches=1,
    )


def train(engine: TorchEngine, num_updates: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num_updates, 16, 32, generator=generator)
    dtype = next(engine.module.parameters()).dtype
    for batch in x.to(dtype):
        engine.backward((engine(batch) - batch.flip(-1)).square().mean(), last=True)
        engine.step()


def masters(engine: TorchEngine) -> Tensor:
    return torch.cat([place.owner.detach().flatten() for place in engine.places()])


def weights(engine: TorchEngine) -> Tensor:
    return torch.cat([p.detach().flatten() for p in engine.module.parameters()])


def moved(precision: Precision) -> Tensor:
    engine = linear_engine(precision)
    before = masters(engine).clone()
    train(engine, 50)
    return masters(engine) - before


def test_bf16_moves_every_weight_at_the_papers_rate_as_fp32_does() -> None:
    found, expected = moved("bf16"), moved("fp32")
    assert found.ne(0).float().mean() > 0.99
    assert (found - expected).norm() < 0.05 * expected.norm()


def test_forwards_read_the_master_weights_rounded() -> None:
    engine = linear_engine("bf16", lr=1e-3)
    train(engine, 5)
    assert masters(engine).dtype == torch.float32
    assert torch.equal(weights(engine), masters(engine).bfloat16())
    assert not torch.equal(weights(engine).float(), masters(engine))


def test_gradients_of_micro_batches_are_added_up_in_float32() -> None:
    module = nn.Linear(1, 1, bias=False)
    engine = TorchEngine(TorchEngineConfig(precision="bf16"), module, OptimizerConfig(lr=1.0), 2)
    for last, gradient in enumerate((256.0, 1.0)):
        x = torch.tensor([[gradient]], dtype=torch.bfloat16)
        engine.backward(engine(x).sum(), last=bool(last))
    assert engine.step() == {"grad_norm": 128.5}  # 128 in bfloat16


def test_a_checkpoint_holds_the_master_weights_and_restores_them(tmp_path: Path) -> None:
    engine, other = linear_engine("bf16"), linear_engine("bf16")
    train(engine, 3)
    engine.snapshot().write(tmp_path)
    saved = {name: read() for name, read in role_weights(tmp_path).items()}
    assert torch.equal(torch.cat([saved["weight"].flatten(), saved["bias"]]), masters(engine))
    other.load(tmp_path)
    for one in (engine, other):
        train(one, 2)
    assert torch.equal(masters(engine), masters(other))
    assert torch.equal(weights(engine), weights(other))


def test_the_average_is_of_the_master_weights() -> None:
    engine = linear_engine("bf16")
    average, expected = Ema("net", engine, 0.5), masters(engine).clone()
    for _ in range(4):
        train(engine, 1)
        average.update()
        expected.lerp_(masters(engine), 0.5)
    last, rounded = masters(engine).clone(), weights(engine)
    with average.swapped():
        assert torch.equal(masters(engine), expected)
        assert torch.equal(weights(engine), expected.bfloat16())
    assert torch.equal(masters(engine), last)
    assert torch.equal(weights(engine), rounded)
    assert not torch.equal(last, expected)


def test_the_average_begins_after_its_first_cycles() -> None:
    engine = linear_engine("fp32", lr=1e-2)
    average = Ema("net", engine, 0.5, start=2)
    for cycle in range(2):
        train(engine, 1)
        average.update(cycle)
        assert torch.equal(
            torch.cat([values.flatten() for values in average.average]), masters(engine)
        )
    before = masters(engine).clone()
    train(engine, 1)
    average.update(2)
    found = torch.cat([values.flatten() for values in average.average])
    torch.testing.assert_close(found, (before + masters(engine)) / 2)


def test_groups_that_leave_out_a_parameter_are_refused() -> None:
    module = nn.Linear(2, 2)
    groups = {"weights": ParameterGroup(list(module.parameters())[:1])}
    with pytest.raises(ValueError, match="the parameter groups weights do not hold every trained"):
        build_engine(
            TorchEngineConfig(), module, OptimizerConfig(lr=1.0), num_micro_batches=1, groups=groups
        )
