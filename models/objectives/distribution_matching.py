"""Distribution matching by generator and critic: dmd, dmd2, magic, magic-gt (002 section 3)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from magicdistill.models.diffusion.flow import Noised, noised, score_sigma, x0_from_velocity
from magicdistill.models.diffusion.guidance import Scale, demand_null, embedded, is_unguided, scales
from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.diffusion.samplers import Velocity
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.critic import Critic, Judged
from magicdistill.models.networks.lora import lora_strength
from magicdistill.models.networks.state_dicts import WRAPPER
from magicdistill.models.networks.transformer import VelocityModel
from magicdistill.models.objectives import adversarial
from magicdistill.models.objectives.cfg_distillation import (
    cfg_distillation_loss,
    draw_guidance,
)
from magicdistill.models.objectives.config import CfgDistillation, DistributionMatchingConfig
from magicdistill.models.objectives.dmd import (
    BothScores,
    descend,
    dmd_gradient,
    fake_score_loss,
)
from magicdistill.models.objectives.rollouts import Rollouts, Start
from magicdistill.models.objectives.score_gap import weak_to_strong_gap
from magicdistill.models.objectives.supervision import ground_truth_loss, pair_loss
from magicdistill.models.objectives.types import (
    Batch,
    Lora,
    Loss,
    Method,
    Networks,
    ParameterGroup,
)
from magicdistill.models.profiling import span


@dataclass(frozen=True)
class LossInputs:
    """What the loss of one update is computed from."""

    networks: Networks
    batch: Batch
    rng: Rng
    guidance: Scale
    """The generator's guidance scale."""

    @property
    def conditions(self) -> Conditions:
        """The batch's conditions."""
        assert self.batch.conditions is not None
        return self.batch.conditions


class DistributionMatching(Method):
    """Train the role `generator`, and LoRA and discriminator in the role `critic`."""

    def __init__(
        self, config: DistributionMatchingConfig, generator: VelocityModel, critic: Critic
    ) -> None:
        if config.sampler.guidance != 1 and not generator.guidance_embeds:
            raise ValueError(
                f"method.sampler.guidance {config.sampler.guidance}: this generator has no "
                "guidance input; set it to 1, or method.cfg_distillation to add the input"
            )
        super().__init__({"generator": generator, "critic": critic})
        self.config = config
        self.strengths, self.adversarial, self.truth = (
            config.strengths,
            config.adversarial,
            config.truth,
        )
        self.generator, self.critic = generator, critic
        self.shares_batch = config.shares_batch
        self.rollouts = Rollouts(
            config.sampler, shared=config.share_rollout, interval=config.interval
        )

    def updates(self, cycle: int) -> Sequence[str]:
        """Update the critic `num_fake_updates` times, then the generator once after warm-up."""
        fakes = ("critic",) * self.config.num_fake_updates
        return fakes if cycle < self.config.warmup_cycles else (*fakes, "generator")

    def parameter_groups(self, role: str) -> Mapping[str, ParameterGroup]:
        """Part the critic's LoRA, whose loss has a factor, from the discriminator."""
        if role != "critic":
            return super().parameter_groups(role)
        lora = [p for p in self.critic.score.parameters() if p.requires_grad]
        groups = {"lora": ParameterGroup(lora, loss_scale=self.config.lora_loss_scale)}
        if self.critic.discriminator is not None:
            trained = list(self.critic.discriminator.parameters())
            groups["discriminator"] = ParameterGroup(trained)
        return groups

    @contextmanager
    def prepared_for(self, role: str) -> Iterator[None]:
        """For the generator's update, freeze the critic and set its LoRA to strength 0."""
        if role == "critic":
            yield
            return
        trained = [p for p in self.critic.parameters() if p.requires_grad]
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            with lora_strength(self.critic, 0.0):
                yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)

    def loss(self, role: str, networks: Networks, batch: Batch, rng: Rng) -> Loss:
        """Return the loss of a role on generated samples of its update's grid index."""
        inputs = LossInputs(networks, batch, rng, self._guidance(rng))
        generator = self._generator(inputs)
        if role == "critic":
            return self._critic_loss(inputs, self.rollouts.prediction(generator, batch, rng))
        return self._generator_loss(inputs, self.rollouts.start(generator, batch, rng))

    def validation_terms(
        self, networks: Networks, latents: Tensor, conditions: Conditions, rng: Rng
    ) -> dict[str, Tensor]:
        """Compare the gap of both scores with plain distribution matching's (`score_gap`)."""
        if self.strengths.alpha_weak == 0:
            return {}
        return weak_to_strong_gap(
            partial(networks["critic"], output="velocity"),
            self.critic,
            latents,
            conditions,
            rng,
            self.config.score_sigma,
            alpha_weak=self.strengths.alpha_weak,
            alpha_strong=self.strengths.alpha_strong,
        )

    def lora(self) -> Lora:
        """Return the critic's LoRA on the frozen teacher."""
        return Lora(
            "critic",
            self.critic.score.transformer,
            f"score.{WRAPPER}",
            weak=self.strengths.alpha_weak,
            strong=self.strengths.alpha_strong,
        )

    def student_lora(self) -> Lora | None:
        """Return the generator's LoRA, where it is one."""
        if self.config.student_lora is None:
            return None
        return Lora("generator", self.generator.transformer, WRAPPER)

    def _guidance(self, rng: Rng) -> Scale:
        if self.config.cfg_distillation is None:
            return self.config.sampler.guidance
        return draw_guidance(self.config.cfg_distillation.guidance, self.rollouts.rng(rng))

    def _generator(self, inputs: LossInputs) -> Velocity:
        network, embeds = inputs.networks["generator"], self.generator.guidance_embeds
        return embedded(network, inputs.guidance, embeds=embeds)

    def _judged(self, inputs: LossInputs, at: Noised, num_parts: int = 1) -> Judged:
        """Return the discriminator's inputs, whose samples are so many times the batch's."""
        conditions = Conditions.cat([inputs.conditions] * num_parts)
        return Judged(at.x_sigma, at.sigma, conditions, self._embedded(inputs.guidance, at.sigma))

    def _embedded(self, scale: Scale, sigma: Tensor) -> Tensor | None:
        """Return the scale for each noise level, or None for a critic that does not take it."""
        return scales(scale, sigma) if self.critic.score.guidance_embeds else None

    def _noise(self, x0: Tensor, rng: Rng, stream: str) -> Noised:
        law = self.config.score_sigma
        u = self.config.interval.narrowed(rng.uniform(f"{stream}-sigma"), law.shift)
        sigma = score_sigma(u, law.shift, law.min, law.max)
        return noised(x0, rng.normal(f"{stream}-eps", x0.shape[1:]), sigma)

    def _critic_loss(self, inputs: LossInputs, x_hat: Tensor) -> Loss:
        fake, critic = self._noise(x_hat.detach(), inputs.rng, "fake"), inputs.networks["critic"]
        call = partial(
            critic,
            fake.x_sigma,
            fake.sigma,
            inputs.conditions,
            self._embedded(inputs.guidance, fake.sigma),
            output="velocity",
        )
        if self.adversarial.adversarial_weight == 0:
            return self._fake_score_loss(call(), x_hat, fake)
        v_fake, logits = call(judged=self._fake_and_real(inputs, fake))
        return self._fake_score_loss(v_fake, x_hat, fake) + self._discriminator_loss(logits)

    def _fake_score_loss(self, v_fake: Tensor, x_hat: Tensor, fake: Noised) -> Loss:
        weight = fake.sigma.square() if self.config.fake_score_target == "x0" else None
        score = fake_score_loss(v_fake, x_hat, fake.eps, weight)
        return Loss(self.config.lora_loss_scale * score, {"fake_score": score.detach()})

    def _fake_and_real(self, inputs: LossInputs, fake: Noised) -> Judged:
        """Return generated and real samples, and with R1 the real ones moved."""
        config, rng = self.adversarial, inputs.rng
        x0 = inputs.batch.x0
        same = config.same_noise
        real = noised(x0, fake.eps, fake.sigma) if same else self._noise(x0, rng, "real")
        parts = [fake, real]
        if config.r1_weight > 0:
            step = config.r1_step * rng.normal("r1", real.x_sigma.shape[1:])
            parts.append(real._replace(x_sigma=real.x_sigma + step))
        joined = Noised(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
        return self._judged(inputs, joined, len(parts))

    def _discriminator_loss(self, logits: adversarial.Logits) -> Loss:
        """Return the loss on the logits of what `_fake_and_real` gives."""
        config = self.adversarial
        on_fake, on_real, *on_moved = logits.chunk(3 if config.r1_weight > 0 else 2)
        loss = adversarial.discriminator_loss(on_fake, on_real)
        margin = on_real.mean() - on_fake.mean()
        terms = {"discriminator": loss.detach(), "logit_margin": margin.detach()}
        if not on_moved:
            return Loss(loss, terms)
        r1 = adversarial.finite_difference_r1(on_real, on_moved[0], config.r1_step)
        return Loss(loss + config.r1_weight * r1, terms | {"r1": r1.detach()})

    def _generator_loss(self, inputs: LossInputs, start: Start) -> Loss:
        v = self._generator(inputs)(start.x, start.sigma, inputs.conditions)
        x_hat = x0_from_velocity(start.x, v, start.sigma)
        at = self._noise(x_hat, inputs.rng, "score")
        pair_weight, dmd_weight = 0.0, self.config.dmd_weight
        if (pairs := self.config.pairs) is not None:
            pair_weight, share = pairs.weights(inputs.rng.cycle)
            dmd_weight *= share
        scores = self._scores(inputs, at)
        v_scores, logits = self._score_and_judge(inputs, scores, at)
        loss, fake_x0 = self._distribution_matching(x_hat, *scores.x0(v_scores), dmd_weight)
        if pairs is not None:
            loss = loss + pair_loss(x_hat, inputs.batch, pair_weight, pairs.huber_c)
            loss.terms["dmd_weight"] = torch.tensor(dmd_weight)
        if logits is not None:
            term = adversarial.generator_loss(logits)
            weighted = self.adversarial.adversarial_weight * term
            loss = loss + Loss(weighted, {"adversarial": term.detach()})
        if (weight := self.truth.ground_truth_weight) > 0:
            term = ground_truth_loss(self.truth.ground_truth, x_hat, inputs.batch.x0, fake_x0)
            loss = loss + Loss(weight * term, {"ground_truth": term.detach()})
        if self.config.cfg_distillation is not None:
            loss = loss + self._cfg_distillation(inputs, self.config.cfg_distillation)
        return loss

    def _scores(self, inputs: LossInputs, at: Noised) -> BothScores:
        """Return both scores, and the guidance that the real one needs from a second prompt."""
        scale = self._real_scale(inputs)
        x_sigma, guidance = at.x_sigma.detach(), None
        if not self.critic.score.guidance_embeds and not is_unguided(scale):
            guidance = (scale, demand_null(inputs.batch.null))
        return BothScores(x_sigma, at.sigma, inputs.conditions, guidance)

    def _real_scale(self, inputs: LossInputs) -> Scale:
        real = self.config.real_guidance
        return inputs.guidance if real is None else real

    @span("scores")
    def _score_and_judge(
        self, inputs: LossInputs, scores: BothScores, at: Noised
    ) -> tuple[Tensor, adversarial.Logits | None]:
        """Return the velocity of both scores, without gradient, and the discriminator's logits."""
        embedded_scales = None
        if self.critic.score.guidance_embeds:
            both = (self._real_scale(inputs), inputs.guidance)
            embedded_scales = torch.cat([scales(scale, at.sigma) for scale in both])
        call = partial(
            inputs.networks["critic"], *scores.inputs(), embedded_scales, output="velocity"
        )
        alphas = self.strengths.alpha_weak, self.strengths.alpha_strong
        with scores.strengths(self.critic, *alphas):
            if self.adversarial.adversarial_weight == 0:
                with torch.no_grad():
                    return call(), None
            return call(judged=self._judged(inputs, at))

    def _distribution_matching(
        self, x_hat: Tensor, real: Tensor, fake: Tensor, weight: float
    ) -> tuple[Loss, Tensor]:
        gradient = dmd_gradient(x_hat.detach(), real, fake)
        dmd = descend(x_hat, gradient)
        terms = {
            "dmd": dmd.detach(),
            "score_gap": (fake - real).abs().mean(),
            "real_distance": (x_hat.detach() - real).abs().mean(),
            "gap_share": gradient.abs().mean(),
        }
        return Loss(weight * dmd, terms), fake

    def _cfg_distillation(self, inputs: LossInputs, config: CfgDistillation) -> Loss:
        """Teach the guidance input; the critic with its LoRA at strength 0 is the teacher."""
        assert isinstance(inputs.guidance, Tensor)
        return cfg_distillation_loss(
            config,
            inputs.networks["generator"],
            partial(inputs.networks["critic"], output="velocity"),
            inputs.batch,
            inputs.rng,
            inputs.guidance,
            teacher_embeds=self.critic.score.guidance_embeds,
        )
