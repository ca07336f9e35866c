"""Compiled blocks compute what eager ones compute."""

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

from magicdistill.models.networks.attention import set_kernels
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.config import KernelsConfig, LoraConfig
from magicdistill.models.networks.critic import Critic
from magicdistill.models.networks.lora import lora_strength
from magicdistill.models.networks.transformer import build_transformer
from tests.tiny import tiny_shapes

SHAPES = tiny_shapes()


def critic() -> Critic:
    torch.manual_seed(0)
    network = Critic(build_transformer(SHAPES), LoraConfig(rank=2), adversarial=True)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return network


def score(network: Critic, strength: float | Tensor) -> list[Tensor]:
    """Return the score at a LoRA strength and the gradients of the LoRA."""
    torch.manual_seed(1)
    x = torch.randn(2, 4, 2, 4, 4)
    conditions = Conditions.null(x[:, :, :1], num_tokens=2, text_dim=6, pooled_dim=6)
    with lora_strength(network, strength):
        v = network.score(x, torch.tensor([0.4, 0.7]), conditions)
        trained = [p for p in network.score.parameters() if p.requires_grad]
        return [v, *torch.autograd.grad(v.square().sum(), trained)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, on tracing
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_compiled_blocks_equal_eager_ones_at_every_lora_strength(recompute, monkeypatch):
    # The compiler cannot trace the checks of shapes that pytest switches on.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    strengths = [1.0, 0.0, torch.tensor([0.25, 1.0])]
    eager = critic()
    expected = [score(eager, strength) for strength in strengths]
    compiled = critic()
    config = KernelsConfig(compile_blocks=True, recompute_blocks=recompute)
    set_kernels(compiled, config, backend="aot_eager")  # inductor needs minutes for nothing more
    found = [score(compiled, strength) for strength in strengths]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
