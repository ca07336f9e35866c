"""An expert is trained at its own noise levels alone."""

from itertools import product
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from magicdistill.models.diffusion.flow import add_noise, score_sigma, sigma_grid
from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.diffusion.samplers import Experts
from magicdistill.models.methods.registry import METHODS
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.objectives.config import NoiseInterval, SamplerConfig
from magicdistill.models.objectives.rollouts import Rollouts
from magicdistill.models.objectives.types import Batch

FOUR = SamplerConfig(num_steps=4, shift=5)  # 1, 0.9375, 0.8333, 0.625
HIGH, LOW = NoiseInterval(min=0.9), NoiseInterval(max=0.9)


@pytest.mark.parametrize(
    ("interval", "steps"),
    [
        (NoiseInterval(), [0, 1, 2, 3]),
        (HIGH, [0, 1]),
        (LOW, [2, 3]),
        (NoiseInterval(min=0.9375), [0, 1]),
        (NoiseInterval(max=0.9375), [2, 3]),
        (NoiseInterval(min=0.95, max=0.99), []),
    ],
)
def test_the_steps_of_a_sampler_are_shared_out_at_the_boundary(interval, steps) -> None:
    assert list(interval.steps(FOUR)) == steps


def test_sampling_asks_each_expert_for_the_steps_that_it_is_trained_on() -> None:
    """Also where a level is the boundary itself, which float32 rounds to either side."""
    zeros, at_boundary, asked = torch.zeros(1), 0, {"high": [], "low": []}

    def expert(name: str) -> Any:
        return lambda x, sigma, _: asked[name].append(round(float(sigma), 6)) or x

    null = Conditions.null(torch.zeros(1, 1, 1, 1, 1), num_tokens=1, text_dim=1, pooled_dim=0)
    for shift, num_steps, boundary in product(
        (1.0, 2.0, 3.0, 5.0), range(1, 31), (0.6, 0.75, 0.8, 0.9)
    ):
        sampler = SamplerConfig(num_steps=num_steps, shift=shift)
        experts = Experts(expert("high"), expert("low"), boundary)
        grid = sigma_grid(num_steps, shift)[:-1]
        for sigma in grid:
            experts(zeros, sigma.expand(1), null)
        levels = [round(level, 6) for level in grid.tolist()]
        trained = (NoiseInterval(min=boundary), NoiseInterval(max=boundary))
        for called, interval in zip(asked.values(), trained, strict=True):
            assert called == [levels[step] for step in interval.steps(sampler)]
            called.clear()
        at_boundary += boundary in levels
    assert at_boundary > 20


def test_an_expert_without_a_step_is_refused() -> None:
    magic: Any = METHODS.get("magic")
    with pytest.raises(ValidationError, match=r"no step of the sampler is from 0\.95 to 0\.99"):
        magic(name="magic", interval={"min": 0.95, "max": 0.99})


@pytest.mark.parametrize("interval", [HIGH, LOW])
def test_scores_are_compared_at_the_experts_levels_alone(interval) -> None:
    u = torch.linspace(0, 1, 101)
    sigma = score_sigma(interval.narrowed(u, 5.0), 5.0, 0.0, 1.0)
    assert sigma.min() == pytest.approx(interval.min, abs=1e-6)
    assert sigma.max() == pytest.approx(interval.max, abs=1e-6)
    assert len(sigma.unique()) == 101, "none is at the boundary because it was cut there"


def test_all_levels_leave_the_draws_as_they_are() -> None:
    u = torch.rand(7)
    assert NoiseInterval().narrowed(u, 5.0) is u


@pytest.mark.parametrize("shared", [True, False])
def test_rollouts_of_the_second_expert_begin_at_data_with_noise(shared) -> None:
    x0 = torch.randn(2, 4, 1, 2, 2)
    conditions = Conditions.null(x0, num_tokens=1, text_dim=2, pooled_dim=0)
    batch, seen = Batch(x0, conditions, range(2)), []

    def towards_data(x, sigma, conditions):
        seen.append(sigma[0].item())
        return (x - x0) / sigma.view(-1, 1, 1, 1, 1)

    for cycle in range(12):
        rng = Rng(0, cycle, 0, range(2))
        rollouts = Rollouts(FOUR, shared=shared, interval=LOW)
        torch.testing.assert_close(rollouts.prediction(towards_data, batch, rng), x0)
        start = rollouts.start(towards_data, batch, rng)
        if start.sigma[0] > 0.7:
            eps = (rng.of_cycle() if shared else rng).normal("noise", x0.shape[1:])
            torch.testing.assert_close(start.x, add_noise(x0, eps, start.sigma))
    assert {round(level, 4) for level in seen} == {0.8333, 0.625}
