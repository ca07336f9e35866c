"""The losses on toy data whose scores, velocities and minima are known."""

import math

import pytest
import torch

from magicdistill.models.diffusion.flow import noised, sigma_grid
from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.diffusion.samplers import Velocity
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.objectives.adversarial import finite_difference_r1
from magicdistill.models.objectives.cfg_distillation import cfg_distillation_loss, draw_guidance
from magicdistill.models.objectives.config import CfgDistillation, GuidanceRange
from magicdistill.models.objectives.dmd import descend, dmd_gradient, fake_score_loss
from magicdistill.models.objectives.huber import pseudo_huber
from magicdistill.models.objectives.lcm import consistency_loss, consistency_target
from magicdistill.models.objectives.supervision import ground_truth_loss
from magicdistill.models.objectives.types import Batch


def conditions(pooled: torch.Tensor) -> Conditions:
    b = len(pooled)
    return Conditions(torch.zeros(b, 1, 1), torch.ones(b, 1, dtype=torch.bool), pooled)


class Gaussian:
    """N(mean, covariance) over the channels of latents (b d 1 1 1)."""

    def __init__(self, mean: torch.Tensor, covariance: torch.Tensor) -> None:
        self.mean, self.covariance = mean, covariance
        self.variances, self.axes = torch.linalg.eigh(covariance)

    def denoise(self, x_sigma: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Return E[x0 | x_sigma] under the flow."""
        keep, s = (1 - sigma)[:, None], sigma[:, None]
        gain = keep * self.variances / (keep**2 * self.variances + s**2)
        centred = (x_sigma.flatten(1) - keep * self.mean) @ self.axes
        return (self.mean + (gain * centred) @ self.axes.T).view_as(x_sigma)

    def divergence(self, other: "Gaussian") -> float:
        """Return KL(self || other)."""
        inverse, apart = torch.linalg.inv(other.covariance), other.mean - self.mean
        volumes = torch.logdet(other.covariance) - torch.logdet(self.covariance)
        trace = torch.trace(inverse @ self.covariance)
        return float(trace + apart @ inverse @ apart - len(apart) + volumes) / 2


@pytest.mark.parametrize("num_dims", [2, 16])
def test_distribution_matching_descends_the_divergence_of_two_gaussians(num_dims):
    """x_hat = mean + root z is trained with both analytic scores: KL falls to its minimum, 0."""
    torch.manual_seed(0)
    spread = torch.randn(num_dims, num_dims) / num_dims**0.5
    real = Gaussian(torch.randn(num_dims), 0.3 * torch.eye(num_dims) + 0.5 * spread @ spread.T)
    mean = torch.zeros(num_dims, requires_grad=True)
    root = torch.eye(num_dims).mul(0.4).requires_grad_()
    optimizer = torch.optim.Adam([mean, root], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 120)
    found = []
    for step in range(120):
        fake = Gaussian(mean.detach(), (root @ root.T).detach())
        if step % 20 == 0:
            found.append(fake.divergence(real))
        x_hat = (mean + torch.randn(128, num_dims) @ root.T).view(128, num_dims, 1, 1, 1)
        at = noised(x_hat.detach(), torch.randn_like(x_hat), torch.rand(128) * 0.96 + 0.02)
        scores = (score.denoise(at.x_sigma, at.sigma) for score in (real, fake))
        loss = descend(x_hat, dmd_gradient(x_hat, *scores))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    end = Gaussian(mean.detach(), (root @ root.T).detach()).divergence(real)
    assert found[:4] == sorted(found[:4], reverse=True)
    assert end < 0.01 * found[0]


def test_the_gradient_is_normalised_for_each_sample_and_arrives_unchanged():
    x_hat = torch.randn(3, 4, 2, 2, 2, requires_grad=True)
    real, fake = torch.randn(3, 4, 2, 2, 2), torch.randn(3, 4, 2, 2, 2)
    g = dmd_gradient(x_hat.detach(), real, fake)
    for i in range(3):
        expected = (fake[i] - real[i]) / (x_hat[i] - real[i]).abs().mean()
        torch.testing.assert_close(g[i], expected.detach())
    descend(x_hat, g).backward()
    torch.testing.assert_close(x_hat.grad, g / g.numel())
    assert dmd_gradient(real, real, real).abs().max() == 0


def test_the_fake_score_loss_is_minimal_at_the_true_velocity_of_a_gaussian():
    """For x0 ~ N(m, s^2) the velocity at sigma is slope (x - (1 - sigma) m) - m."""
    torch.manual_seed(0)
    m, s, sigma = 0.7, 0.5, 0.6
    slope = (sigma - (1 - sigma) * s**2) / ((1 - sigma) ** 2 * s**2 + sigma**2)
    offset = -slope * (1 - sigma) * m - m
    x_hat = (m + s * torch.randn(1, 1, 1, 500, 500)).requires_grad_()
    at = noised(x_hat.detach(), torch.randn_like(x_hat), torch.full((1,), sigma))
    found = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.LBFGS([found], line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = fake_score_loss(found[0] * at.x_sigma + found[1], x_hat, at.eps)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert found.tolist() == pytest.approx([slope, offset], abs=0.01)
    assert x_hat.grad is None


def to_point(target: torch.Tensor) -> Velocity:
    return lambda x, sigma, conditions: (x - target) / sigma.view(-1, 1, 1, 1, 1).clamp_min(1e-6)


def test_a_consistent_student_of_an_exact_solver_is_a_fixed_point():
    """Paths to a point are straight: Euler is exact, and the true field is consistent."""
    torch.manual_seed(0)
    target, eps = torch.randn(2, 1, 2, 3, 3), torch.randn(2, 1, 2, 3, 3)
    at = noised(target, eps, torch.tensor([1.0, 0.5]))
    factor = torch.ones((), requires_grad=True)

    def student(x, sigma, conditions):
        return factor * to_point(target)(x, sigma, conditions)

    def loss(target_factor: float) -> torch.Tensor:
        factor.data.fill_(target_factor)
        after, null = torch.tensor([0.9, 0.25]), conditions(torch.zeros(2, 1))
        return consistency_loss(student, to_point(target), at.x_sigma, at.sigma, after, null)

    fixed, away = loss(1.0), loss(0.8)
    assert fixed < 1e-6
    assert torch.autograd.grad(fixed, factor)[0].abs() < 1e-3
    assert away > 0.01


def test_the_consistency_target_errs_by_the_square_of_the_step():
    """Along the curved paths of N(0, s^2), one Euler step is off by O(h^2)."""
    s, sigma = 0.5, 0.6
    x = torch.randn(1, 1, 1, 8, 8, dtype=torch.float64)

    def spread(t):
        return (((1 - t) * s) ** 2 + t**2).sqrt().view(-1, 1, 1, 1, 1)

    def student(x, sigma, conditions):
        return (x - s * x / spread(sigma)) / sigma.view(-1, 1, 1, 1, 1)

    def teacher(x, sigma, conditions):
        return (sigma - (1 - sigma) * s**2).view(-1, 1, 1, 1, 1) * x / spread(sigma) ** 2

    def error(step: float) -> float:
        now, after = (torch.tensor([t], dtype=torch.float64) for t in (sigma, sigma - step))
        null = conditions(torch.zeros(1, 1))
        target = consistency_target(student, teacher, x, now, after, null)
        return float((target - s * x / spread(now)).abs().mean())

    assert math.log2(error(0.02) / error(0.01)) == pytest.approx(2, abs=0.1)


def test_guidance_distillation_recovers_the_guided_velocity():
    """The teacher's c = prompt x + sigma and u = sigma give u + w (c - u) = w prompt x + sigma."""
    torch.manual_seed(0)
    found = torch.zeros(3, requires_grad=True)

    def field(x, sigma, conditions):
        prompt, s = (value.view(-1, 1, 1, 1, 1) for value in (conditions.pooled, sigma))
        return prompt * x + s

    def student(x, sigma, conditions, *, guidance):
        prompt, s, w = (
            value.view(-1, 1, 1, 1, 1) for value in (conditions.pooled, sigma, guidance)
        )
        return found[0] * w * prompt * x + found[1] * s + found[2] * prompt * x

    scales = GuidanceRange(min=0.0, max=5.0, form="magic141")
    config = CfgDistillation(base_weight=0.0, guidance=scales)
    rng = Rng(0, 0, 0, range(64))
    batch = Batch(
        torch.randn(64, 2, 1, 2, 2),
        conditions(torch.randn(64, 1)),
        rng.positions,
        null=conditions(torch.zeros(64, 1)),
    )
    guidance = draw_guidance(scales, rng)
    assert guidance.min() >= 1 and guidance.max() <= 6 and guidance.std() > 1
    optimizer = torch.optim.LBFGS([found], max_iter=50, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = cfg_distillation_loss(
            config, student, field, batch, rng, guidance, teacher_embeds=False
        )
        loss.total.backward()
        return loss.total

    optimizer.step(closure)
    assert found.tolist() == pytest.approx([1, 1, 0], abs=1e-3)


def test_pseudo_huber_is_quadratic_near_zero_and_linear_far_away():
    zero = torch.zeros(1, 4)
    assert pseudo_huber(zero, zero) == 0
    assert pseudo_huber(zero, zero + 1e-2, c=1.0) == pytest.approx(0.5e-4, rel=1e-2)
    assert pseudo_huber(zero, zero + 50.0) == pytest.approx(50, rel=1e-3)


def test_the_finite_difference_penalty_is_the_squared_gradient_of_a_linear_discriminator():
    torch.manual_seed(0)
    weight, step = torch.randn(6), 0.01
    x = torch.randn(40000, 6).double()
    moved = x + step * torch.randn_like(x)
    logits, perturbed = (points @ weight.double()[:, None] for points in (x, moved))
    expected = float(weight.square().sum())
    assert finite_difference_r1(logits, perturbed, step) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("reading", ["mse", "huber", "dmd"])
def test_every_reading_of_ground_truth_pulls_to_the_clip(reading):
    torch.manual_seed(0)
    truth = torch.randn(2, 3, 2, 2, 2)
    x_hat = torch.randn(2, 3, 2, 2, 2, requires_grad=True)
    optimizer = torch.optim.SGD([x_hat], lr=1.0)
    before = float((x_hat - truth).abs().mean().detach())
    for _ in range(100):
        loss = ground_truth_loss(reading, x_hat, truth, x_hat.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (x_hat - truth).abs().mean() < 0.2 * before


def test_the_teachers_grid_holds_the_students():
    """The 28-step grid of the consistency loss holds the 4-step grid of its student."""
    fine, coarse = sigma_grid(28, shift=5.0), sigma_grid(4, shift=5.0)
    torch.testing.assert_close(fine[::7], coarse)
