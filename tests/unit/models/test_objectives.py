import pytest
import torch

from magicdistill.models.diffusion.draws import Draws
from magicdistill.models.metrics.frechet import frechet_distance
from magicdistill.models.metrics.proxies import ProxyVideoFeatures, motion
from magicdistill.models.objectives.config import FinetuneMethod, MagicMethod
from magicdistill.models.objectives.dmd import descend, dmd_gradient
from magicdistill.models.objectives.flow_matching import Finetune
from magicdistill.models.objectives.magic import MagicDistillation

DRAWS = Draws(0, cycle=0, turn=0, positions=range(2))


def method(generator, critic, **changes) -> MagicDistillation:
    return MagicDistillation(MagicMethod(name="magic", **changes), generator, critic)


def gradients(module) -> set[str]:
    return {
        name
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().sum() > 0
    }


def test_equal_strengths_give_exactly_no_distribution_matching_gradient(generator, critic, batch):
    magic = method(generator, critic, alpha_weak=1.0, adversarial_weight=0.0)
    with magic.turn("generator"):
        loss = magic.loss("generator", magic.modules, batch, DRAWS)
        loss.total.backward()
    assert loss.terms["score_gap"] == 0
    assert gradients(generator) == set()


def test_the_score_gap_is_linear_in_the_strengths_for_a_small_lora(generator, critic, batch):
    for name, parameter in critic.named_parameters():
        if "lora_B" in name:
            parameter.data *= 0.01
    gaps = {}
    for alpha in (0.0, 0.25):
        magic = method(generator, critic, alpha_weak=alpha, adversarial_weight=0.0)
        with magic.turn("generator"):
            gaps[alpha] = magic.loss("generator", magic.modules, batch, DRAWS).terms["score_gap"]
    assert gaps[0.25] / gaps[0.0] == pytest.approx(0.75, abs=0.02)


def test_the_critics_turn_trains_lora_and_discriminator_only(generator, critic, batch):
    magic = method(generator, critic)
    with magic.turn("critic"):
        magic.loss("critic", magic.modules, batch, DRAWS).total.backward()
    assert gradients(generator) == set()
    found = gradients(critic)
    assert found and all("lora_" in name or "discriminator" in name for name in found)
    assert any("lora_A" in name for name in found)
    assert any("discriminator.head" in name for name in found)


@pytest.mark.parametrize("ground_truth", ["mse", "dmd"])
def test_the_generators_turn_trains_the_generator_only(generator, critic, batch, ground_truth):
    magic = method(generator, critic, ground_truth=ground_truth, ground_truth_weight=0.1)
    with magic.turn("generator"):
        loss = magic.loss("generator", magic.modules, batch, DRAWS)
        loss.total.backward()
    assert gradients(critic) == set()
    assert len(gradients(generator)) > 10
    assert {"dmd", "adversarial", "ground_truth"} <= loss.terms.keys()
    assert any(p.requires_grad for p in critic.parameters())


@pytest.mark.parametrize("share", [True, False])
def test_a_loss_is_a_function_of_batch_and_draws(generator, critic, batch, share):
    first, again = (
        method(generator, critic, share_rollout=share).loss(
            "critic", {"generator": generator, "critic": critic}, batch, DRAWS
        )
        for _ in range(2)
    )
    assert torch.equal(first.total, again.total)


def test_distribution_matching_descends_to_the_target_gaussian():
    """With the analytic scores of two Gaussians, the mean moves to the real one's."""
    torch.manual_seed(0)
    real_mean, mean = 1.5, torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([mean], lr=0.05)
    for _ in range(200):
        x_hat = mean + 0.1 * torch.randn(64, 1, 1, 8, 8)
        sigma = torch.rand(64, 1, 1, 1, 1) * 0.9 + 0.05
        x_sigma = (1 - sigma) * x_hat + sigma * torch.randn_like(x_hat)
        # E[x0 | x_sigma] of N(m, 0.1^2) under the flow
        gain = 0.01 * (1 - sigma) / ((1 - sigma) ** 2 * 0.01 + sigma**2)
        real, fake = (m + gain * (x_sigma - (1 - sigma) * m) for m in (real_mean, mean.detach()))
        loss = descend(x_hat, dmd_gradient(x_hat, real, fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert mean.item() == pytest.approx(real_mean, abs=0.1)


def test_warm_up_cycles_leave_the_generator_alone(generator, critic):
    magic = method(generator, critic, warmup_cycles=1, num_fake_updates=2)
    assert list(magic.turns(0)) == ["critic"] * 2
    assert list(magic.turns(1)) == ["critic", "critic", "generator"]


def test_fine_tuning_reaches_every_block(generator, batch):
    finetune = Finetune(FinetuneMethod(name="finetune"), generator)
    finetune.loss("generator", finetune.modules, batch, DRAWS).total.backward()
    reached = gradients(generator)
    assert any("single_transformer_blocks.1" in name for name in reached)
    assert any("x_embedder" in name for name in reached)


def test_the_frechet_distance_of_gaussians_has_its_closed_form():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4000, 3, generator=generator).double()
    base = (base - base.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(base.T))).T
    scaled = 2 * base + torch.tensor([3.0, 0.0, 0.0])
    assert frechet_distance(base.numpy(), scaled.numpy()) == pytest.approx(9 + 3 * (2 - 1) ** 2)
    assert frechet_distance(base.numpy(), base.numpy()) == pytest.approx(0, abs=1e-6)


def test_the_proxy_sees_blur_and_motion():
    generator = torch.Generator().manual_seed(0)
    video = torch.rand(16, 3, 9, 32, 32, generator=generator) * 2 - 1
    blurred = torch.nn.functional.avg_pool3d(video, (1, 3, 3), 1, (0, 1, 1))
    still = video[:, :, :1].expand_as(video)
    features = ProxyVideoFeatures()
    real, half = features(video).numpy(), features(video[:8]).numpy()
    assert frechet_distance(features(blurred).numpy(), real) > 10 * frechet_distance(half, real)
    assert motion(still).max() == 0 and motion(video).min() > 0
