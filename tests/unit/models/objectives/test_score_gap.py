"""Weak-to-strong against plain distribution matching, on a critic with a LoRA of known size."""

from functools import partial

import pytest
import torch

from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.networks.critic import Critic
from magicdistill.models.objectives.config import ScoreSigmaConfig
from magicdistill.models.objectives.score_gap import weak_to_strong_gap
from magicdistill.models.objectives.types import Batch


def gap(critic: Critic, batch: Batch, alpha_weak: float, size: float = 1.0) -> dict[str, float]:
    with torch.no_grad():
        for name, parameter in critic.named_parameters():
            if "lora_B" in name:
                parameter *= size
    assert batch.conditions is not None
    found = weak_to_strong_gap(
        partial(critic, output="velocity"),
        critic,
        batch.x0,
        batch.conditions,
        Rng(0, 0, 0, batch.positions),
        ScoreSigmaConfig(),
        alpha_weak=alpha_weak,
        alpha_strong=1.0,
    )
    return {name: float(value) for name, value in found.items()}


def test_a_small_lora_makes_weak_to_strong_a_mere_rescaling(critic: Critic, batch: Batch) -> None:
    found = gap(critic, batch, alpha_weak=0.25, size=0.01)
    assert found["gap_ratio"] == pytest.approx(0.75, abs=0.01)
    assert found["gap_cosine"] == pytest.approx(1.0, abs=1e-3)


def test_a_large_lora_makes_it_another_direction(critic: Critic, batch: Batch) -> None:
    assert gap(critic, batch, alpha_weak=0.5, size=50.0)["gap_cosine"] < 0.99


def test_without_a_weak_strength_the_gaps_are_the_same(critic: Critic, batch: Batch) -> None:
    assert gap(critic, batch, alpha_weak=0.0) == pytest.approx({"gap_ratio": 1, "gap_cosine": 1})
