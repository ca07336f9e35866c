"""Distribution matching by generator and critic: dmd, dmd2, magic and magic-gt (002 section 3)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from magicdistill.models.diffusion.flow import Noised, noised, score_sigma, x0_from_velocity
from magicdistill.models.diffusion.guidance import Scale, demand_null, embedded, is_unguided, scales
from magicdistill.models.diffusion.rng import Draws
from magicdistill.models.diffusion.samplers import Velocity
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.critic import Critic
from magicdistill.models.networks.lora import lora_strength
from magicdistill.models.networks.transformer import VelocityModel
from magicdistill.models.objectives import adversarial
from magicdistill.models.objectives.cfg_distillation import (
    cfg_distillation_loss,
    draw_guidance,
)
from magicdistill.models.objectives.config import (
    AdversarialPart,
    CfgDistillation,
    DistributionMatchingConfig,
    GroundTruthPart,
    WeakToStrongPart,
)
from magicdistill.models.objectives.dmd import (
    descend,
    dmd_gradient,
    fake_score_loss,
    real_and_fake_x0,
)
from magicdistill.models.objectives.ground_truth import ground_truth_loss
from magicdistill.models.objectives.pairs import pair_loss
from magicdistill.models.objectives.rollouts import Rollouts, Visit
from magicdistill.models.objectives.types import Batch, Loss, Networks
from magicdistill.models.profiling import span


@dataclass(frozen=True)
class Turn:
    """What the loss of one turn is computed from."""

    networks: Networks
    batch: Batch
    draws: Draws
    guidance: Scale
    """The generator's guidance scale."""

    @property
    def conditions(self) -> Conditions:
        """The batch's conditions."""
        assert self.batch.conditions is not None
        return self.batch.conditions


class DistributionMatching:
    """Train the generator (role `generator`) and LoRA plus discriminator (role `critic`)."""

    def __init__(
        self, config: DistributionMatchingConfig, generator: VelocityModel, critic: Critic
    ) -> None:
        if config.sampler.guidance != 1 and not generator.guidance_embeds:
            raise ValueError(
                f"method.sampler.guidance {config.sampler.guidance}: this generator has no "
                "guidance input; set it to 1, or method.cfg_distillation to add the input"
            )
        self.config = config
        # what the method's name leaves out has no weight
        weak_to_strong = isinstance(config, WeakToStrongPart)
        self.strengths = config if weak_to_strong else WeakToStrongPart(alpha_weak=0)
        has_discriminator = isinstance(config, AdversarialPart)
        self.adversarial = config if has_discriminator else AdversarialPart(adversarial_weight=0)
        supervised = isinstance(config, GroundTruthPart)
        self.truth = config if supervised else GroundTruthPart(ground_truth_weight=0)
        self.generator, self.critic = generator, critic
        self.modules: Mapping[str, nn.Module] = {"generator": generator, "critic": critic}
        self.shares_batch = config.share_rollout
        self.rollouts = Rollouts(config.sampler, shared=config.share_rollout)

    def turns(self, cycle: int) -> Sequence[str]:
        """Update the critic `num_fake_updates` times, then the generator once after warm-up."""
        fakes = ("critic",) * self.config.num_fake_updates
        return fakes if cycle < self.config.warmup_cycles else (*fakes, "generator")

    @contextmanager
    def turn(self, role: str) -> Iterator[None]:
        """In the generator's turn, freeze the critic and set its LoRA aside until the backward."""
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

    def loss(self, role: str, networks: Networks, batch: Batch, draws: Draws) -> Loss:
        """Return the loss of a role on generated samples of its turn's grid index."""
        turn = Turn(networks, batch, draws, self._guidance(draws))
        visit = self.rollouts.visit(self._generator(turn), batch, draws)
        if role == "critic":
            return self._critic_loss(turn, visit.x0)
        return self._generator_loss(turn, visit)

    def _guidance(self, draws: Draws) -> Scale:
        if self.config.cfg_distillation is None:
            return self.config.sampler.guidance
        return draw_guidance(self.config.cfg_distillation.guidance, self.rollouts.draws(draws))

    def _generator(self, turn: Turn) -> Velocity:
        network, embeds = turn.networks["generator"], self.generator.guidance_embeds
        return embedded(network, turn.guidance, embeds=embeds)

    def _critic(self, turn: Turn, output: Literal["velocity", "logits"]) -> Velocity:
        network = partial(turn.networks["critic"], output=output)
        return embedded(network, turn.guidance, embeds=self.critic.score.guidance_embeds)

    def _noise(self, x0: Tensor, draws: Draws, stream: str) -> Noised:
        law = self.config.score_sigma
        sigma = score_sigma(draws.uniform(f"{stream}-sigma"), law.shift, law.low, law.high)
        return noised(x0, draws.normal(f"{stream}-eps", x0.shape[1:]), sigma)

    def _critic_loss(self, turn: Turn, x_hat: Tensor) -> Loss:
        fake = self._noise(x_hat.detach(), turn.draws, "fake")
        v_fake = self._critic(turn, "velocity")(fake.x_sigma, fake.sigma, turn.conditions)
        score = fake_score_loss(v_fake, x_hat, fake.eps)
        loss = Loss(self.config.lora_loss_scale * score, {"fake_score": score.detach()})
        if self.adversarial.adversarial_weight > 0:
            loss = loss + self._discriminator_loss(turn, fake)
        return loss

    def _discriminator_loss(self, turn: Turn, fake: Noised) -> Loss:
        config, draws = self.adversarial, turn.draws
        real = self._noise(turn.batch.x0, draws, "real")
        x, num_parts = [fake.x_sigma, real.x_sigma], 2
        if config.r1_weight > 0:
            step = config.r1_step * draws.normal("r1", real.x_sigma.shape[1:])
            x, num_parts = [*x, real.x_sigma + step], 3
        logits = self._critic(turn, "logits")(
            torch.cat(x),
            torch.cat([fake.sigma, real.sigma, real.sigma][:num_parts]),
            Conditions.cat([turn.conditions] * num_parts),
        )
        on_fake, on_real, *on_moved = logits.chunk(num_parts)
        loss = adversarial.discriminator_loss(on_fake, on_real)
        margin = on_real.mean() - on_fake.mean()
        terms = {"discriminator": loss.detach(), "logit_margin": margin.detach()}
        if not on_moved:
            return Loss(loss, terms)
        r1 = adversarial.finite_difference_r1(on_real, on_moved[0], config.r1_step)
        return Loss(loss + config.r1_weight * r1, terms | {"r1": r1.detach()})

    def _generator_loss(self, turn: Turn, visit: Visit) -> Loss:
        v = self._generator(turn)(visit.x, visit.sigma, turn.conditions)
        x_hat = x0_from_velocity(visit.x, v, visit.sigma)
        at = self._noise(x_hat, turn.draws, "score")
        pair_weight, dmd_weight = 0.0, self.config.dmd_weight
        if (pairs := self.config.pairs) is not None:
            pair_weight, share = pairs.weights(turn.draws.cycle)
            dmd_weight *= share
        loss, fake_x0 = self._distribution_matching(turn, x_hat, at, dmd_weight)
        if pairs is not None:
            loss = loss + pair_loss(x_hat, turn.batch, pair_weight, pairs.huber_c)
            loss.terms["dmd_weight"] = torch.tensor(dmd_weight)
        if (weight := self.adversarial.adversarial_weight) > 0:
            logits = self._critic(turn, "logits")(at.x_sigma, at.sigma, turn.conditions)
            term = adversarial.generator_loss(logits)
            loss = loss + Loss(weight * term, {"adversarial": term.detach()})
        if (weight := self.truth.ground_truth_weight) > 0:
            term = ground_truth_loss(self.truth.ground_truth, x_hat, turn.batch.x0, fake_x0)
            loss = loss + Loss(weight * term, {"ground_truth": term.detach()})
        if self.config.cfg_distillation is not None:
            loss = loss + self._cfg_distillation(turn, self.config.cfg_distillation)
        return loss

    def _distribution_matching(
        self, turn: Turn, x_hat: Tensor, at: Noised, weight: float
    ) -> tuple[Loss, Tensor]:
        score, guidance = self._scores(turn, at.sigma)
        with span("scores"):
            real, fake = real_and_fake_x0(
                score,
                self.critic,
                at.x_sigma.detach(),
                at.sigma,
                turn.conditions,
                alpha_weak=self.strengths.alpha_weak,
                alpha_strong=self.strengths.alpha_strong,
                guidance=guidance,
            )
        dmd = descend(x_hat, dmd_gradient(x_hat, real, fake))
        gap, distance = (fake - real).abs().mean(), (x_hat.detach() - real).abs().mean()
        terms = {"dmd": dmd.detach(), "score_gap": gap, "real_distance": distance}
        return Loss(weight * dmd, terms | {"gap_share": gap / distance}), fake

    def _scores(
        self, turn: Turn, sigma: Tensor
    ) -> tuple[Velocity, tuple[Scale, Conditions] | None]:
        """Return the scores' network, and the guidance that the real one needs beside it."""
        network = partial(turn.networks["critic"], output="velocity")
        scale = turn.guidance if self.config.real_guidance is None else self.config.real_guidance
        if self.critic.score.guidance_embeds:
            both = torch.cat([scales(scale, sigma), scales(turn.guidance, sigma)])
            return embedded(network, both, embeds=True), None
        if is_unguided(scale):
            return network, None
        return network, (scale, demand_null(turn.batch.null))

    def _cfg_distillation(self, turn: Turn, config: CfgDistillation) -> Loss:
        """Teach the guidance input; this turn's critic, its LoRA at strength 0, is the teacher."""
        assert isinstance(turn.guidance, Tensor)
        return cfg_distillation_loss(
            config,
            turn.networks["generator"],
            partial(turn.networks["critic"], output="velocity"),
            turn.batch,
            turn.draws,
            turn.guidance,
            teacher_embeds=self.critic.score.guidance_embeds,
        )
