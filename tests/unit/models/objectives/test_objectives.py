from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from magicdistill.models.diffusion.flow import (
    add_noise,
    score_sigma,
    sigma_grid,
    x0_from_velocity,
)
from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.diffusion.samplers import sample
from magicdistill.models.methods.registry import AnyMethod
from magicdistill.models.metrics.frechet import frechet_distance
from magicdistill.models.metrics.proxies import ProxyVideoFeatures, motion
from magicdistill.models.networks.config import LoraConfig
from magicdistill.models.networks.critic import Critic
from magicdistill.models.networks.lora import lora_strength
from magicdistill.models.networks.student import Student
from magicdistill.models.networks.transformer import VelocityModel, copy_transformer
from magicdistill.models.objectives.cfg_distillation import CfgDistill
from magicdistill.models.objectives.config import CfgDistillation, SamplerConfig
from magicdistill.models.objectives.distribution_matching import DistributionMatching
from magicdistill.models.objectives.dmd import BothScores, real_and_fake_x0
from magicdistill.models.objectives.flow_matching import Finetune
from magicdistill.models.objectives.lcm import Lcm
from magicdistill.models.objectives.rollouts import Rollouts

DRAWS = Rng(0, cycle=0, update=0, positions=range(2))
CONFIGS: TypeAdapter[Any] = TypeAdapter(AnyMethod)


def method(generator, critic, name="magic", **changes) -> DistributionMatching:
    config = CONFIGS.validate_python({"name": name} | changes)
    return DistributionMatching(config, generator, critic)


def gradients(module) -> set[str]:
    return {
        name
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().sum() > 0
    }


def assert_frozen_is_untouched(module) -> None:
    frozen = [p for p in module.parameters() if not p.requires_grad]
    assert frozen and all(parameter.grad is None for parameter in frozen)


def generator_loss(magic, batch, rng=DRAWS):
    with magic.prepared_for("generator"):
        loss = magic.loss("generator", magic.modules, batch, rng)
        loss.total.backward()
    return loss


def guided_student(generator) -> VelocityModel:
    """The teacher's weights and a guidance input with an effect."""
    student = VelocityModel(copy_transformer(generator.transformer))
    student.backbone.add_guidance()
    embedder: Any = student.transformer.time_text_embed.guidance_embedder
    for parameter in embedder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return student


@pytest.fixture
def prompted(batch):
    """A batch with a prompt, and the null prompt beside it."""
    torch.manual_seed(3)
    text = replace(batch.conditions, text=torch.randn(2, 2, 6), pooled=torch.randn(2, 6))
    return replace(batch, conditions=text, null=batch.conditions)


def test_equal_strengths_give_exactly_no_distribution_matching_gradient(generator, critic, batch):
    magic = method(generator, critic, alpha_weak=1.0, adversarial_weight=0.0)
    loss = generator_loss(magic, batch)
    assert loss.terms["score_gap"] == 0
    assert gradients(generator) == set()


def test_a_weak_strength_of_zero_is_plain_distribution_matching(generator, critic, batch):
    losses = [
        generator_loss(method(generator, critic, name, **changes), batch).total
        for name, changes in (("magic", {"alpha_weak": 0.0}), ("dmd2", {}))
    ]
    assert torch.equal(*losses)


@torch.no_grad()
def test_the_real_score_at_strength_zero_is_the_teacher(generator, critic, batch):
    sigma = torch.tensor([0.3, 0.8])
    real, fake = real_and_fake_x0(
        critic.score, critic, batch.x0, sigma, batch.conditions, alpha_weak=0.0, alpha_strong=1.0
    )
    teacher = batch.x0 - sigma.view(-1, 1, 1, 1, 1) * generator(batch.x0, sigma, batch.conditions)
    torch.testing.assert_close(real, teacher, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(fake, teacher, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("sees_frames", [False, True])
def test_the_guided_real_score_is_the_guided_velocity_of_the_weak_lora(
    critic, prompted, sees_frames
):
    conditions, null = prompted.conditions, prompted.null
    if sees_frames:
        image = torch.randn(2, 3, 6)
        conditions, null = (replace(one, image_tokens=image) for one in (conditions, null))
    x, sigma = prompted.x0, torch.tensor([0.3, 0.8])
    both = BothScores(x, sigma, conditions, guidance=(4.5, null))
    with both.strengths(critic, 0.25, 1.0):
        real, fake = both.x0(critic.score(*both.inputs()))

    def velocity(strength, given):
        with lora_strength(critic, strength):
            return critic.score(x, sigma, given)

    unguided, without = velocity(0.25, conditions), velocity(0.25, null)
    guided = without + 4.5 * (unguided - without)
    for found, v in ((real, guided), (fake, velocity(1.0, conditions))):
        expected = x - sigma.view(-1, 1, 1, 1, 1) * v
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (guided - unguided).abs().mean() > 1e-3


def test_weak_to_strong_scales_the_gradient_of_a_small_lora(generator, critic, batch):
    """The generator's whole gradient is near (alpha_strong - alpha_weak) times that of DMD."""
    for name, parameter in critic.named_parameters():
        if "lora_B" in name:
            parameter.data *= 0.01
    found = {}
    for alpha in (0.0, 0.25, 0.5, 0.75):
        generator.zero_grad()
        generator_loss(method(generator, critic, alpha_weak=alpha, adversarial_weight=0.0), batch)
        found[alpha] = torch.cat([p.grad.flatten() for p in generator.parameters()])
    for alpha, gradient in found.items():
        expected = (1 - alpha) * found[0.0]
        assert (gradient - expected).norm() < 0.02 * found[0.0].norm()


def test_the_critics_update_trains_lora_and_discriminator_only(generator, critic, batch):
    magic = method(generator, critic, r1_weight=1.0)
    with magic.prepared_for("critic"):
        loss = magic.loss("critic", magic.modules, batch, DRAWS)
        loss.total.backward()
    assert loss.terms["r1"] > 0
    assert gradients(generator) == set()
    assert_frozen_is_untouched(critic)
    found = gradients(critic)
    assert found and all("lora_" in name or "discriminator" in name for name in found)
    assert any("lora_A" in name for name in found)
    assert any("discriminator.head" in name for name in found)


def test_the_loss_scale_of_the_lora_leaves_discriminator_and_logs_alone(generator, critic, batch):
    terms, found = [], []
    for scale in (1.0, 1e4):
        critic.zero_grad()
        magic = method(generator, critic, lora_loss_scale=scale)
        loss = magic.loss("critic", magic.modules, batch, DRAWS)
        loss.total.backward()
        terms.append(loss.terms)
        found.append({n: p.grad.clone() for n, p in critic.named_parameters() if p.requires_grad})
    assert terms[0] == terms[1]
    for name, plain in found[0].items():
        factor = 1e4 if "lora_" in name else 1.0
        torch.testing.assert_close(found[1][name], factor * plain, rtol=1e-3, atol=1e-6 * factor)


@pytest.mark.parametrize(
    ("name", "changes", "terms"),
    [
        ("dmd", {}, {"dmd"}),
        ("dmd2", {}, {"dmd", "adversarial"}),
        ("magic", {}, {"dmd", "adversarial"}),
        ("magic", {"real_guidance": 3.0}, {"dmd", "adversarial"}),
        ("magic-gt", {}, {"dmd", "adversarial", "ground_truth"}),
        ("magic-gt", {"ground_truth": "huber"}, {"dmd", "adversarial", "ground_truth"}),
        ("magic-gt", {"ground_truth": "dmd"}, {"dmd", "adversarial", "ground_truth"}),
    ],
)
def test_the_generators_update_trains_the_generator_only(
    generator, critic, prompted, name, changes, terms
):
    magic = method(generator, critic, name, **changes)
    loss = generator_loss(magic, prompted)
    assert gradients(critic) == set()
    assert_frozen_is_untouched(critic)
    assert len(gradients(generator)) > 10
    assert loss.terms.keys() - {"score_gap", "real_distance", "gap_share"} == terms
    assert any(p.requires_grad for p in critic.parameters())


def test_guidance_is_distilled_inside_the_stage(generator, critic, prompted):
    """Scales are drawn in the Ho form, where a rollout is shared for its cycle, and reach the
    input."""
    student = guided_student(generator)
    scales = {"min": 0.0, "max": 5.0, "form": "magic141"}
    fresh = method(student, critic, "dmd2", cfg_distillation={"guidance": scales})
    magic = method(
        student, critic, "dmd2", cfg_distillation={"guidance": scales}, share_rollout=True
    )
    with magic.prepared_for("critic"):
        magic.loss("critic", magic.modules, prompted, DRAWS).total.backward()
    assert gradients(student) == set()
    loss = generator_loss(magic, prompted, replace(DRAWS, update=1))
    assert {"cfg", "cfg_base", "dmd", "adversarial"} <= loss.terms.keys()
    assert loss.terms["guidance"] == (1 + 5 * DRAWS.of_cycle().uniform("guidance")).mean()
    own = generator_loss(fresh, prompted).terms["guidance"]
    assert own == (1 + 5 * DRAWS.uniform("guidance")).mean()
    assert_frozen_is_untouched(critic)
    assert any("guidance_embedder" in name for name in gradients(student))


def test_a_guidance_embedded_teacher_scores_in_one_doubled_forward(generator, batch):
    """Real at real_guidance and fake at the generator's scale, without the null prompt."""
    base = guided_student(generator).transformer
    critic = Critic(copy_transformer(base), LoraConfig(rank=2), adversarial=True)
    sampler = {"guidance": 2.0}
    same = generator_loss(method(VelocityModel(base), critic, sampler=sampler), batch)
    apart = generator_loss(
        method(VelocityModel(base), critic, sampler=sampler, real_guidance=6.0), batch
    )
    assert same.terms["score_gap"] == 0  # a fresh LoRA is zero
    assert apart.terms["score_gap"] > 0


def test_a_scale_for_a_generator_without_the_input_is_refused(generator, critic):
    with pytest.raises(ValueError, match="cfg_distillation"):
        method(generator, critic, sampler={"guidance": 2.0})


def test_the_consistency_method_trains_the_student_only(generator, batch):
    student = Student(copy_transformer(generator.transformer), generator.transformer)
    lcm = Lcm(student, SamplerConfig(), SamplerConfig(num_steps=28), huber_c=1e-3)
    loss = lcm.loss("generator", lcm.modules, batch, DRAWS)
    loss.total.backward()
    assert_frozen_is_untouched(student)
    assert len(gradients(student.transformer)) > 10
    assert loss.terms.keys() == {"consistency"}


def test_guidance_distillation_trains_the_student_only(generator, prompted):
    student = Student(guided_student(generator).transformer, generator.transformer)
    distill = CfgDistill(CfgDistillation(), student)
    loss = distill.loss("generator", distill.modules, prompted, DRAWS)
    loss.total.backward()
    assert_frozen_is_untouched(student)
    assert any("guidance_embedder" in name for name in gradients(student.transformer))
    assert loss.terms.keys() == {"cfg", "cfg_base", "guidance"}


@pytest.mark.parametrize("share", [True, False])
def test_a_loss_is_a_function_of_batch_and_draws(generator, critic, batch, share):
    first, again = (
        method(generator, critic, share_rollout=share).loss(
            "critic", {"generator": generator, "critic": critic}, batch, DRAWS
        )
        for _ in range(2)
    )
    assert torch.equal(first.total, again.total)


@pytest.mark.parametrize("name", ["euler", "consistency"])
def test_the_rollout_is_the_sampler(generator, batch, name):
    sampler = SamplerConfig(name=name, num_steps=3)
    rollouts = Rollouts(sampler, shared=True)
    rng = DRAWS.of_cycle()
    shape = batch.x0.shape[1:]
    latents = sample(
        generator,
        rng.normal("noise", shape),
        sigma_grid(3, shift=5.0),
        batch.conditions,
        sampler=name,
        fresh_noise=lambda step: rng.normal(f"fresh-{step}", shape),
    )
    last = next(
        rng for update in range(99)
        if (rng := replace(DRAWS, update=update)).shared_index("grid", 3) == 2
    )  # fmt: skip
    assert torch.equal(rollouts.prediction(generator, batch, last), latents)


class Counted:
    """The generator's velocity, and the inputs of its calls."""

    def __init__(self, generator) -> None:
        self.generator = generator
        self.calls: list[tuple[torch.Tensor, ...]] = []

    def __call__(self, *inputs):
        self.calls.append(inputs)
        return self.generator(*inputs)


def test_all_ranks_train_the_same_grid_index_and_so_the_same_number_of_forwards(generator, batch):
    for cycle in range(6):
        counts, sigmas = [], []
        for positions in (range(2), range(2, 4)):
            network, own = Counted(generator), replace(batch, positions=positions)
            rollouts, rng = Rollouts(SamplerConfig(), shared=False), Rng(0, cycle, 0, positions)
            rollouts.prediction(network, own, rng)
            sigmas.append(rollouts.start(network, own, rng).sigma)
            counts.append(len(network.calls))
        assert counts[0] == counts[1] and torch.equal(*sigmas)


@pytest.mark.parametrize("name", ["euler", "consistency"])
def test_a_fresh_rollout_runs_no_forward_that_its_update_does_not_need(generator, batch, name):
    """The generator's own forward, with a gradient, is the last one of the critic's rollout."""
    rollouts = Rollouts(SamplerConfig(name=name), shared=False)
    by_index = {}
    for update in range(40):
        rng = replace(DRAWS, update=update)
        if (index := rng.grid_index(4)) not in by_index:
            seen, before = Counted(generator), Counted(generator)
            x0 = rollouts.prediction(seen, batch, rng)
            start = rollouts.start(before, batch, rng)
            v = generator(*start, batch.conditions)
            torch.testing.assert_close(x0_from_velocity(start.x, v, start.sigma), x0)
            by_index[index] = len(seen.calls), len(before.calls)
    assert by_index == {index: (index + 1, index) for index in range(4)}
    planned = CONFIGS.validate_python({"name": "dmd"}).cycle_updates(embeds=False)
    rollout = {update.name: update.forwards[0] for update in planned}
    for role, place in (("critic", 0), ("generator", 1)):
        lengths = [counts[place] for counts in by_index.values()]
        assert rollout[role].what == "rollout" and rollout[role].most == max(lengths)
        assert rollout[role].repeats == sum(lengths) / len(lengths)


def test_every_update_draws_fresh_noise_unless_it_shares_a_rollout(generator, batch):
    for shared, num_noises in ((False, 6), (True, 1)):
        network, rollouts = Counted(generator), Rollouts(SamplerConfig(), shared=shared)
        for update in range(6):
            rollouts.prediction(network, batch, replace(DRAWS, update=update))
        starts = [x for x, sigma, _ in network.calls if sigma[0] == 1]
        assert len({float(x.sum()) for x in starts}) == num_noises
    assert not CONFIGS.validate_python({"name": "magic"}).share_rollout, "quality is the default"


def test_a_shared_rollout_runs_once_a_cycle_and_its_visits_serve_the_fakes(generator, batch):
    network, rollouts = Counted(generator), Rollouts(SamplerConfig(), shared=True)
    updates = [replace(DRAWS, update=update) for update in range(6)]
    visits = [rollouts.prediction(network, batch, rng) for rng in updates]
    start = rollouts.start(network, batch, updates[-1])
    assert len(network.calls) == 4 and torch.equal(
        start.x, network.calls[updates[-1].grid_index(4)][0]
    )
    assert len({float(x0.sum()) for x0 in visits}) > 1
    rollouts.prediction(network, batch, replace(DRAWS, cycle=1))
    assert len(network.calls) == 8


@pytest.mark.parametrize("same", [True, False])
def test_the_discriminator_sees_real_samples_in_the_noise_of_the_generated_ones(
    generator, critic, batch, same
):
    """Real samples that are the generated ones are then judged alike."""
    magic = method(generator, critic, same_noise=same)
    generated = magic.rollouts.prediction(generator, batch, DRAWS)
    loss = magic.loss("critic", magic.modules, replace(batch, x0=generated), DRAWS)
    assert (loss.terms["logit_margin"].abs() < 1e-6) == same


@torch.no_grad()
def test_a_fake_score_of_x0_errs_by_its_distance_to_the_generated_sample(generator, critic, batch):
    magic = method(generator, critic, "dmd", fake_score_target="x0")
    loss = magic.loss("critic", magic.modules, batch, DRAWS).terms["fake_score"]
    x_hat = magic.rollouts.prediction(generator, batch, DRAWS)
    sigma = score_sigma(DRAWS.uniform("fake-sigma"), 5.0, 0.02, 0.98)
    x_sigma = add_noise(x_hat, DRAWS.normal("fake-eps", x_hat.shape[1:]), sigma)
    fake_x0 = x0_from_velocity(x_sigma, critic.score(x_sigma, sigma, batch.conditions), sigma)
    torch.testing.assert_close(loss, (fake_x0 - x_hat).square().mean())


def test_warm_up_cycles_leave_the_generator_alone(generator, critic):
    magic = method(generator, critic, warmup_cycles=1, num_fake_updates=2)
    assert list(magic.updates(0)) == ["critic"] * 2
    assert list(magic.updates(1)) == ["critic", "critic", "generator"]


@pytest.mark.parametrize(
    ("values", "right"),
    [
        ({"name": "dmd", "adversarial_weight": 0.1}, "dmd has no adversarial_weight.*dmd2"),
        ({"name": "dmd2", "alpha_weak": 0.25}, "dmd2 has no alpha_weak.*magic"),
        ({"name": "magic", "ground_truth_weight": 0.1}, "no ground_truth_weight.*magic-gt"),
        ({"name": "lcm", "teacher": {"name": "consistency"}}, "euler"),
        ({"name": "cfg-distill", "guidance": {"min": 3, "max": 2}}, "above"),
    ],
)
def test_a_method_refuses_what_another_name_stands_for(values, right):
    with pytest.raises(ValidationError, match=right):
        CONFIGS.validate_python(values)


def test_names_set_their_parts_and_a_zero_weight_agrees_with_them():
    dmd = CONFIGS.validate_python({"name": "dmd", "alpha_weak": 0, "adversarial_weight": 0.0})
    assert dmd == CONFIGS.validate_python({"name": "dmd"})
    gt = CONFIGS.validate_python({"name": "magic-gt"})
    assert (gt.alpha_weak, gt.alpha_strong) == (0.25, 1.0)
    assert gt.adversarial_weight > 0 and gt.ground_truth_weight > 0


def test_fine_tuning_reaches_every_block(generator, batch):
    finetune = Finetune(generator, shift=1.0, uniform_share=0.15)
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
