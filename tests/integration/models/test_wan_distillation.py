"""The tiny Wan is distilled weak to strong, from random weights, as HunyuanVideo is."""

from typing import Any

import pytest
import torch

from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.methods.registry import METHODS
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.placement import WHOLE
from magicdistill.models.networks.presets import ModelConfig
from magicdistill.models.objectives.types import Batch


@pytest.mark.parametrize("interval", [{}, {"max": 0.9}], ids=["whole", "second expert"])
def test_the_tiny_wan_is_distilled_weak_to_strong(interval) -> None:
    torch.manual_seed(0)
    model = ModelConfig(preset="wan-tiny")
    magic: Any = METHODS.get("magic-gt")
    config = magic(
        name="magic-gt", num_fake_updates=2, lora={"rank": 4}, interval=interval
    ).fitted_to(model.shapes.transformer)
    assert not list(config.problems(model, 6))
    method = config.build(model, WHOLE)
    x0, prior = torch.randn(2, 16, 3, 4, 4), torch.randn(2, 16, 3, 4, 4)
    conditions = Conditions.null(prior, num_tokens=512, text_dim=64, pooled_dim=0)
    batch = Batch(x0, conditions, range(2), null=conditions)
    roles = {"generator": method.modules["generator"], "critic": method.modules["critic"]}
    start = {
        role: torch.cat([p.detach().flatten() for p in module.parameters() if p.requires_grad])
        for role, module in roles.items()
    }
    optimizers = {
        role: torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-3)
        for role, module in roles.items()
    }
    truths = []
    for cycle in range(6):
        for number, role in enumerate(method.updates(cycle)):
            with method.prepared_for(role):
                loss = method.loss(role, method.modules, batch, Rng(0, cycle, number, range(2)))
                optimizers[role].zero_grad()
                loss.total.backward()
            optimizers[role].step()
            assert torch.isfinite(loss.total)
            if role == "generator":
                assert loss.terms["score_gap"] > 0
                truths.append(loss.terms["ground_truth"].item())
    assert truths[-1] < truths[0]
    for role, module in roles.items():
        now = torch.cat([p.detach().flatten() for p in module.parameters() if p.requires_grad])
        assert (now != start[role]).float().mean() > 0.9, f"{role}: nearly all of it is trained"
