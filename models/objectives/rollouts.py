"""The samples that a few-step generator is trained on: steps of its own sampler from noise."""

from typing import NamedTuple

import torch
from torch import Tensor

from magicdistill.models.diffusion.flow import add_noise, sigma_grid
from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.diffusion.samplers import Velocity, rollout
from magicdistill.models.objectives.config import NoiseInterval, SamplerConfig
from magicdistill.models.objectives.types import Batch
from magicdistill.models.profiling import span


class Visit(NamedTuple):
    """One network call of a rollout: its input, its noise level (b,) and its clean prediction."""

    x: Tensor
    sigma: Tensor
    x0: Tensor


class Rollouts:
    """Rolls out without gradient to a grid index that is drawn once for all ranks of the job.

    Ranks that ran different numbers of forwards would wait for each other under ZeRO-3. With
    `shared`, one whole rollout serves all updates of a cycle: every x0 that it visits is a valid
    sample at its own step, and the generator does not change before the cycle's last update.
    """

    def __init__(
        self, sampler: SamplerConfig, *, shared: bool, interval: NoiseInterval | None = None
    ) -> None:
        """Take the noise levels of the network, which by default are all of the sampler's."""
        self.sampler, self.shared = sampler, shared
        self.steps = (interval or NoiseInterval()).steps(sampler)
        self._cycle = -1
        self._kept: dict[tuple[int, ...], list[Visit]] = {}

    def rng(self, rng: Rng) -> Rng:
        """Return the random numbers that a rollout of this update depends on."""
        return rng.of_cycle() if self.shared else rng

    def visit(self, generator: Velocity, batch: Batch, rng: Rng) -> Visit:
        """Return the network call at the update's grid index."""
        num_steps = len(self.steps)
        index = rng.shared_index("grid", num_steps)
        if not self.shared:
            return self._run(generator, batch, rng, index + 1)[index]
        if rng.cycle != self._cycle:
            self._cycle, self._kept = rng.cycle, {}
        key = tuple(batch.positions)
        if key not in self._kept:
            self._kept[key] = self._run(generator, batch, self.rng(rng), num_steps)
        return self._kept[key][index]

    @span("rollout")
    @torch.no_grad()
    def _run(self, generator: Velocity, batch: Batch, rng: Rng, num_steps: int) -> list[Visit]:
        shape, device = batch.x0.shape[1:], batch.x0.device
        assert batch.conditions is not None
        sigmas = sigma_grid(self.sampler.num_steps, self.sampler.shift, device)[self.steps.start :]
        start = batch.pair.noise if batch.pair else rng.normal("noise", shape)
        if self.steps.start:  # another expert makes the steps before
            start = add_noise(batch.x0, start, sigmas[0].expand(len(start)))
        visited = rollout(
            generator,
            start,
            sigmas,
            batch.conditions,
            sampler=self.sampler.name,
            fresh_noise=lambda step: rng.normal(f"fresh-{step}", shape),
            num_steps=num_steps,
        )
        return [Visit(*call) for call in visited]
