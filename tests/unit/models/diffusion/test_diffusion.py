import math

import pytest
import torch

from magicdistill.models.diffusion.flow import (
    add_noise,
    score_sigma,
    sigma_grid,
    velocity,
    x0_from_velocity,
)
from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.diffusion.samplers import rollout, sample
from magicdistill.models.networks.conditioning.conditions import Conditions


def null(latents: torch.Tensor) -> Conditions:
    return Conditions.null(latents[:, :, :1], num_tokens=2, text_dim=3, pooled_dim=3)


def test_the_four_step_grid_is_the_papers():
    timesteps = 1000 * sigma_grid(4, shift=5.0)
    expected = torch.tensor([1000.0, 937.5, 833.3, 625.0, 0.0])
    torch.testing.assert_close(timesteps, expected, atol=0.1, rtol=0)


def test_velocity_leads_back_to_the_clean_sample():
    x0, eps, sigma = torch.randn(2, 3, 4, 5, 6), torch.randn(2, 3, 4, 5, 6), torch.rand(2)
    found = x0_from_velocity(add_noise(x0, eps, sigma), velocity(x0, eps), sigma)
    torch.testing.assert_close(found, x0, atol=1e-5, rtol=1e-5)


def test_score_sigmas_stay_in_their_range_and_lean_to_noise():
    sigma = score_sigma(torch.linspace(0, 1, 1001), shift=5.0, low=0.02, high=0.98)
    assert sigma.min() == pytest.approx(0.02) and sigma.max() == pytest.approx(0.98)
    assert sigma.median() == pytest.approx(5 / 6, abs=1e-3)


def gaussian_velocity(mean: float, std: float):
    """Return the velocity field that carries N(0, 1) to N(mean, std^2)."""

    def velocity(x, sigma, conditions):
        t = sigma.view(-1, 1, 1, 1, 1)
        slope = (t - (1 - t) * std**2) / ((1 - t) ** 2 * std**2 + t**2)
        return slope * (x - (1 - t) * mean) - mean

    return velocity


@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_euler_converges_at_first_order_on_a_gaussian_flow(shift):
    """The flow's solution at sigma 0 is mean + std * noise."""
    mean, std = 1.5, 0.5
    noise = torch.randn(1, 1, 1, 16, 16, dtype=torch.float64)

    def error(num_steps: int) -> float:
        grid = sigma_grid(num_steps, shift).double()
        found = sample(gaussian_velocity(mean, std), noise, grid, null(noise))
        return float((found - (mean + std * noise)).abs().mean())

    counts = [32, 64, 128, 256]
    slope = math.log(error(counts[-1]) / error(counts[0])) / math.log(counts[-1] / counts[0])
    assert slope == pytest.approx(-1, abs=0.1)


GRIDS = [sigma_grid(4, shift=5.0), sigma_grid(1, shift=5.0), torch.tensor([1.0, 0.8, 0.1, 0.0])]


@pytest.mark.parametrize("grid", GRIDS, ids=["4 steps", "1 step", "uneven"])
@pytest.mark.parametrize("name", ["euler", "consistency"])
def test_samplers_return_the_data_of_a_point_distribution_on_any_grid(name, grid):
    target = torch.randn(2, 3, 4, 5, 6)

    def to_target(x, sigma, conditions):
        return (x - target) / sigma.view(-1, 1, 1, 1, 1)

    found = sample(
        to_target,
        torch.randn_like(target),
        grid,
        null(target),
        sampler=name,
        fresh_noise=lambda step: torch.randn_like(target),
    )
    torch.testing.assert_close(found, target, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("grid", GRIDS, ids=["4 steps", "1 step", "uneven"])
def test_an_exact_consistency_model_is_sampled_exactly_on_any_grid(grid):
    """f(x, sigma) = mean + std (x - (1 - sigma) mean) / std of x_sigma, for N(mean, std^2)."""
    mean, std = 1.5, 0.5

    def to_the_end_of_the_path(x, sigma, conditions):
        t = sigma.view(-1, 1, 1, 1, 1)
        spread = ((1 - t) ** 2 * std**2 + t**2).sqrt()
        return (x - mean - std * (x - (1 - t) * mean) / spread) / t

    noise = torch.randn(1, 1, 1, 300, 300)
    found = sample(
        to_the_end_of_the_path,
        noise,
        grid,
        null(noise),
        sampler="consistency",
        fresh_noise=lambda step: torch.randn_like(noise),
    )
    assert found.mean() == pytest.approx(mean, abs=0.01)
    assert found.std() == pytest.approx(std, abs=0.01)


@pytest.mark.parametrize("grid", [[0.5, 1.0, 0.0], [1.0, 0.5], [1.0, 0.5, 0.5, 0.0]])
def test_a_grid_that_does_not_decrease_to_zero_is_refused(grid):
    noise = torch.randn(1, 1, 1, 2, 2)
    with pytest.raises(ValueError, match="decreases and ends at 0"):
        sample(gaussian_velocity(0, 1), noise, torch.tensor(grid), null(noise))


def test_the_consistency_sampler_demands_fresh_noise():
    noise = torch.randn(1, 1, 1, 2, 2)
    with pytest.raises(ValueError, match="fresh_noise"):
        rollout(
            lambda x, sigma, conditions: x, noise, sigma_grid(2, 1.0), null(noise),
            sampler="consistency",
        )  # fmt: skip


def test_draws_belong_to_the_sample_and_not_to_the_rank():
    whole = Rng(0, cycle=3, update=1, positions=range(8))
    parts = [Rng(0, cycle=3, update=1, positions=part) for part in (range(4), range(4, 8))]
    expected = whole.normal("eps", (2, 3))
    assert torch.equal(expected, torch.cat([part.normal("eps", (2, 3)) for part in parts]))
    assert parts[0].shared_index("grid", 1000) == parts[1].shared_index("grid", 1000)


def test_draws_differ_between_streams_turns_and_cycles():
    rng = Rng(0, cycle=0, update=0, positions=range(2))
    others = [
        rng.uniform("b"),
        Rng(0, cycle=1, update=0, positions=range(2)).uniform("a"),
        Rng(0, cycle=0, update=1, positions=range(2)).uniform("a"),
        Rng(1, cycle=0, update=0, positions=range(2)).uniform("a"),
    ]
    assert all(not torch.equal(rng.uniform("a"), other) for other in others)
