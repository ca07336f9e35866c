"""MagicDistillation: DMD2 with weak-to-strong scores and optional ground truth (002 section 3)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from magicdistill.models.diffusion.draws import Draws
from magicdistill.models.diffusion.flow import (
    add_noise,
    score_sigma,
    sigma_grid,
    x0_from_velocity,
)
from magicdistill.models.diffusion.samplers import rollout
from magicdistill.models.networks.conditions import Conditions
from magicdistill.models.networks.critic import Critic
from magicdistill.models.networks.lora import lora_strength
from magicdistill.models.networks.transformer import VelocityModel
from magicdistill.models.objectives import adversarial
from magicdistill.models.objectives.config import MagicMethod
from magicdistill.models.objectives.dmd import (
    descend,
    dmd_gradient,
    fake_score_loss,
    real_and_fake_x0,
)
from magicdistill.models.objectives.types import Batch, Loss, Networks

Visit = tuple[Tensor, Tensor, Tensor]


class Noised(NamedTuple):
    """Clean latents carried to the noise level of a score comparison."""

    x_sigma: Tensor
    sigma: Tensor
    eps: Tensor


class MagicDistillation:
    """Train the generator (role `generator`) and LoRA plus discriminator (role `critic`)."""

    def __init__(self, config: MagicMethod, generator: VelocityModel, critic: Critic) -> None:
        self.config = config
        self.critic = critic
        self.modules: Mapping[str, nn.Module] = {"generator": generator, "critic": critic}
        self.shares_batch = config.share_rollout
        self._shared: dict[tuple[int, tuple[int, ...]], list[Visit]] = {}

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
        visits, index = self._visits(networks, batch, draws)
        if role == "critic":
            return self._critic_loss(networks, batch, visits[index][2], draws)
        return self._generator_loss(networks, batch, visits[index], draws)

    def _visits(self, networks: Networks, batch: Batch, draws: Draws) -> tuple[list[Visit], int]:
        """Roll out up to a grid index that is drawn once for all ranks of the job."""
        num_steps = self.config.sampler.num_steps
        index = draws.shared_index("grid", num_steps)
        if not self.config.share_rollout:
            return self._rollout(networks, batch, draws, index + 1), index
        key = (draws.cycle, tuple(batch.positions))
        if key not in self._shared:
            self._shared = {k: v for k, v in self._shared.items() if k[0] == draws.cycle}
            self._shared[key] = self._rollout(networks, batch, draws.of_cycle(), num_steps)
        return self._shared[key], index

    @torch.no_grad()
    def _rollout(
        self, networks: Networks, batch: Batch, draws: Draws, num_steps: int
    ) -> list[Visit]:
        """Run the sampler from pure noise without gradient."""
        config, shape = self.config.sampler, batch.x0.shape[1:]
        assert batch.conditions is not None
        return rollout(
            networks["generator"],
            draws.normal("noise", shape),
            sigma_grid(config.num_steps, config.shift, batch.x0.device),
            batch.conditions,
            sampler=config.name,
            fresh_noise=lambda step: draws.normal(f"fresh-{step}", shape),
            num_steps=num_steps,
        )

    def _noise(self, x0: Tensor, draws: Draws, stream: str) -> Noised:
        law = self.config.score_sigma
        sigma = score_sigma(draws.uniform(f"{stream}-sigma"), law.shift, law.low, law.high)
        eps = draws.normal(f"{stream}-eps", x0.shape[1:])
        return Noised(add_noise(x0, eps, sigma), sigma, eps)

    def _critic_loss(self, networks: Networks, batch: Batch, x_hat: Tensor, draws: Draws) -> Loss:
        x_hat, conditions = x_hat.detach(), batch.conditions
        assert conditions is not None
        fake = self._noise(x_hat, draws, "fake")
        v_fake = networks["critic"](fake.x_sigma, fake.sigma, conditions, output="velocity")
        score = fake_score_loss(v_fake, x_hat, fake.eps)
        terms = {"fake_score": score.detach()}
        total = self.config.lora_loss_scale * score
        if self.config.adversarial_weight > 0:
            real = self._noise(batch.x0, draws, "real")
            logits = networks["critic"](
                torch.cat([fake.x_sigma, real.x_sigma]),
                torch.cat([fake.sigma, real.sigma]),
                Conditions.cat([conditions, conditions]),
                output="logits",
            )
            on_fake, on_real = logits.chunk(2)
            loss = adversarial.discriminator_loss(on_fake, on_real)
            total = total + loss
            margin = on_real.mean() - on_fake.mean()
            terms |= {"discriminator": loss.detach(), "logit_margin": margin.detach()}
        return Loss(total, terms)

    def _generator_loss(self, networks: Networks, batch: Batch, visit: Visit, draws: Draws) -> Loss:
        x, sigma, _ = visit
        x_hat = x0_from_velocity(x, networks["generator"](x, sigma, batch.conditions), sigma)
        noised = self._noise(x_hat, draws, "score")
        dmd, terms, fake_x0 = self._distribution_matching(networks, batch, x_hat, noised)
        total = self.config.dmd_weight * dmd
        if self.config.adversarial_weight > 0:
            logits = networks["critic"](
                noised.x_sigma, noised.sigma, batch.conditions, output="logits"
            )
            loss = adversarial.generator_loss(logits)
            total = total + self.config.adversarial_weight * loss
            terms["adversarial"] = loss.detach()
        if self.config.ground_truth_weight > 0:
            loss = self._ground_truth(x_hat, batch.x0, fake_x0)
            total = total + self.config.ground_truth_weight * loss
            terms["ground_truth"] = loss.detach()
        return Loss(total, terms)

    def _distribution_matching(
        self, networks: Networks, batch: Batch, x_hat: Tensor, noised: Noised
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        assert batch.conditions is not None
        real, fake = real_and_fake_x0(
            lambda *inputs: networks["critic"](*inputs, output="velocity"),
            self.critic,
            noised.x_sigma.detach(),
            noised.sigma,
            batch.conditions,
            alpha_weak=self.config.alpha_weak,
            alpha_strong=self.config.alpha_strong,
        )
        loss = descend(x_hat, dmd_gradient(x_hat, real, fake))
        gap, distance = (fake - real).abs().mean(), (x_hat.detach() - real).abs().mean()
        terms = {"dmd": loss.detach(), "score_gap": gap, "real_distance": distance}
        return loss, terms, fake

    def _ground_truth(self, x_hat: Tensor, x_gt: Tensor, fake_x0: Tensor) -> Tensor:
        """Supervise with real latents; both readings of 002 Eq. 7 are reconstructed."""
        if self.config.ground_truth == "dmd":
            return descend(x_hat, dmd_gradient(x_hat, x_gt, fake_x0))
        return functional.mse_loss(x_hat, x_gt)
