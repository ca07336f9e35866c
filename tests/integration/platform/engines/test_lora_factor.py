"""Training with and without the large factor on the LoRA's loss, clipped group by group."""

import pytest
import torch
from torch import Tensor

from magicdistill.models.methods.dmd2 import Dmd2Method
from magicdistill.models.networks.critic import Critic
from magicdistill.models.networks.placement import WHOLE
from magicdistill.models.networks.presets import ModelConfig
from magicdistill.models.objectives.types import Batch
from magicdistill.platform.config.sections import OptimizerConfig, TorchEngineConfig
from magicdistill.platform.engines.engine import build_engine
from magicdistill.platform.training.loop import Loop, Metrics
from tests.batches import sample


def critic_cycles(
    factor: float, clip_norm: float | None
) -> tuple[list[Metrics], dict[str, Tensor]]:
    """Train a critic for three cycles; return its metrics, and how far each parameter moved."""
    torch.manual_seed(0)
    config = Dmd2Method(
        name="dmd2",
        lora_loss_scale=factor,
        warmup_cycles=3,
        share_rollout=False,
        num_fake_updates=5,
    )
    method = config.build(ModelConfig(preset="nano"), WHOLE)
    optimizer = OptimizerConfig(lr=1e-3, clip_norm=clip_norm, eps=1e-12)
    engines = {
        role: build_engine(
            TorchEngineConfig(),
            module,
            optimizer,
            num_micro_batches=1,
            groups=method.parameter_groups(role),
        )
        for role, module in method.modules.items()
    }
    critic = method.modules["critic"]
    assert isinstance(critic, Critic)
    before = {n: p.detach().clone() for n, p in critic.named_parameters() if p.requires_grad}
    batches: list[Batch] = [sample(position) for position in range(16)]
    loop = Loop(method, engines, lambda step, micro: batches[step], seed=0, num_micro_batches=1)
    metrics = [loop.cycle(cycle) for cycle in range(3)]
    after = dict(critic.named_parameters())
    return metrics, {name: after[name].detach() - value for name, value in before.items()}


@pytest.mark.parametrize("clip_norm", [None, 0.01])
def test_lora_and_discriminator_move_as_without_the_factor_on_the_loras_loss(
    clip_norm: float | None,
) -> None:
    expected, plain = critic_cycles(1.0, clip_norm)
    found, scaled = critic_cycles(1e4, clip_norm)
    assert {"critic/lora/grad_norm", "critic/discriminator/grad_norm"} <= found[0].keys()
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
        if clip_norm:  # the limit is in force for both
            assert min(v for name, v in ours.items() if "grad_norm" in name) > clip_norm
    for name, step in plain.items():
        if "lora_" in name:
            assert (scaled[name] - step).norm() <= 0.05 * step.norm(), name
        else:
            assert torch.equal(scaled[name], step), name
