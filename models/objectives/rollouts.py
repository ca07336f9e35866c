"""The samples that a few-step generator is trained on: steps of its own sampler from noise."""

from typing import NamedTuple

import torch
from torch import Tensor

from magicdistill.models.diffusion.flow import add_noise, sigma_grid
from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.diffusion.samplers import Velocity, run_steps
from magicdistill.models.objectives.config import NoiseInterval, SamplerConfig
from magicdistill.models.objectives.types import Batch
from magicdistill.models.profiling import span


class Start(NamedTuple):
    """Where a network call of a rollout starts: its input and its noise level (b,)."""

    x: Tensor
    sigma: Tensor


class Rollouts:
    """Rolls out without gradient to a grid index that is drawn once for all ranks of the job.

    Ranks that ran different numbers of forwards would wait for each other under ZeRO-3. With
    `shared`, one whole rollout serves all updates of a cycle: every x0 that it visits is a valid
    sample at its own step, and the generator does not change before the cycle's last update.
    Otherwise each update runs what it needs: up to the clean prediction at its grid index for the
    critic, up to the input there for the generator, whose own forward follows.
    """

    def __init__(
        self, sampler: SamplerConfig, *, shared: bool, interval: NoiseInterval | None = None
    ) -> None:
        """Take the noise levels of the network, which by default are all of the sampler's."""
        self.sampler, self.shared = sampler, shared
        self.steps = (interval or NoiseInterval()).steps(sampler)
        self._cycle = -1
        self._kept: dict[tuple[int, ...], list[tuple[Tensor, Tensor, Tensor]]] = {}

    def rng(self, rng: Rng) -> Rng:
        """Return the random numbers that a rollout of this update depends on."""
        return rng.of_cycle() if self.shared else rng

    def prediction(self, generator: Velocity, batch: Batch, rng: Rng) -> Tensor:
        """Return the clean prediction at the update's grid index, as the critic needs it.

        It comes from a pair's noise only where the generator's update shares the rollout.
        """
        index = rng.grid_index(len(self.steps))
        if self.shared:
            return self._shared_visits(generator, batch, rng)[index][2]
        noise = rng.normal("noise", batch.x0.shape[1:])
        visited, _ = self._run(generator, batch, noise, rng, index + 1)
        return visited[index][2]

    def start(self, generator: Velocity, batch: Batch, rng: Rng) -> Start:
        """Return where the update's network call starts, as the generator needs it."""
        index = rng.grid_index(len(self.steps))
        if self.shared:
            return Start(*self._shared_visits(generator, batch, rng)[index][:2])
        noise = self._noise(batch, rng)
        _, x = self._run(generator, batch, noise, rng, index)
        return Start(x, self._grid(batch)[index].expand(len(x)))

    def _shared_visits(
        self, generator: Velocity, batch: Batch, rng: Rng
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        if rng.cycle != self._cycle:
            self._cycle, self._kept = rng.cycle, {}
        key = tuple(batch.positions)
        if key not in self._kept:
            own, num_steps = self.rng(rng), len(self.steps)
            noise = self._noise(batch, own)
            self._kept[key], _ = self._run(generator, batch, noise, own, num_steps)
        return self._kept[key]

    @staticmethod
    def _noise(batch: Batch, rng: Rng) -> Tensor:
        return batch.pair.noise if batch.pair else rng.normal("noise", batch.x0.shape[1:])

    def _grid(self, batch: Batch) -> Tensor:
        sigmas = sigma_grid(self.sampler.num_steps, self.sampler.shift, batch.x0.device)
        return sigmas[self.steps.start :]

    @span("rollout")
    @torch.no_grad()
    def _run(
        self, generator: Velocity, batch: Batch, noise: Tensor, rng: Rng, num_steps: int
    ) -> tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor]:
        shape, sigmas = batch.x0.shape[1:], self._grid(batch)
        assert batch.conditions is not None
        if self.steps.start:  # another expert makes the steps before
            noise = add_noise(batch.x0, noise, sigmas[0].expand(len(noise)))
        return run_steps(
            generator,
            noise,
            sigmas,
            batch.conditions,
            self.sampler.name,
            lambda step: rng.normal(f"fresh-{step}", shape),
            num_steps,
        )
