"""Noise-data pairs of the 1-step stage: a frozen few-step generator makes them on the fly.

Pair i is a function of (seed, i, generator): its noise is drawn for that position, its conditions
are those of the sample that training reads there.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from magicdistill.data_pipeline.latents.cache import LatentCache, LatentRow
from magicdistill.data_pipeline.rows import digest
from magicdistill.models.checksums import digest_weights
from magicdistill.models.diffusion.flow import sigma_grid
from magicdistill.models.diffusion.guidance import guided
from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.diffusion.samplers import sample
from magicdistill.models.locations import find_weights
from magicdistill.models.methods.build import trained
from magicdistill.models.networks.attention import set_kernels
from magicdistill.models.networks.transformer import VelocityModel
from magicdistill.models.objectives.types import Batch, Pair
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.data.batches import LatentBatches

PAIRS = -2
"""The cycle number of the pairs' random numbers: no training cycle and no validation has it."""


class PairGenerator:
    """The frozen few-step generator that makes the pairs of a recipe."""

    def __init__(self, recipe: Recipe) -> None:
        assert recipe.pairs is not None
        torch.set_num_threads(recipe.cluster.threads_per_worker)
        self.sampler, self.seed = recipe.pairs.sampler, recipe.seed
        self.device = "cuda" if recipe.cluster.uses_gpus else "cpu"
        network = trained(recipe.pairs.generator, recipe.model)
        dtype = torch.bfloat16 if recipe.engine.precision == "bf16" else torch.float32
        self.velocity = VelocityModel(network).to(self.device, dtype).requires_grad_(False)
        set_kernels(self.velocity, recipe.kernels)

    def __call__(self, batch: Batch) -> Batch:
        """Return the batch with a pair for each of its positions, in host memory."""
        own = batch.to(self.device)
        assert own.conditions is not None
        rng = pair_rng(self.seed, own.positions, self.device)
        shape, embeds = own.x0.shape[1:], self.velocity.guidance_embeds
        noise = rng.normal("noise", shape)
        video = sample(
            guided(self.velocity, self.sampler.guidance, own.null, embeds=embeds),
            noise,
            sigma_grid(self.sampler.num_steps, self.sampler.shift, self.device),
            own.conditions,
            sampler=self.sampler.name,
            fresh_noise=lambda step: rng.normal(f"fresh-{step}", shape),
        )
        return replace(own, pair=Pair(noise, video)).to("cpu")


class StoredPairs:
    """Reads pairs that `store_pairs` wrote; their noise is drawn again instead of stored."""

    def __init__(self, recipe: Recipe, batches: LatentBatches) -> None:
        assert recipe.pairs is not None and recipe.pairs.stored is not None
        self.cache, self.recipe = LatentCache(recipe.pairs.stored), recipe
        self.batches = batches

    def __call__(self, batch: Batch) -> Batch:
        """Return the batch with its pairs.

        Raises:
            ValueError: if they are not stored or belong to another recipe.
        """
        rows = [self._read(position) for position in batch.positions]
        rng = pair_rng(self.recipe.seed, batch.positions, "cpu")
        noise = rng.normal("noise", batch.x0.shape[1:])
        return replace(batch, pair=Pair(noise, torch.stack([row.latents for row in rows])))

    def _read(self, position: int) -> LatentRow:
        if position >= len(self.cache):
            raise ValueError(f"pairs.stored: only {len(self.cache)} pairs, not {position + 1}")
        row = self.cache.read(position)
        if row.facts.key != pair_key(self.recipe, self.batches, position):
            raise ValueError("pairs.stored: made with another seed, sampler, generator or data")
        return row


def pair_key(recipe: Recipe, batches: LatentBatches, position: int) -> str:
    """Return the key of a pair: a hash of everything that decides it, its sample included."""
    assert recipe.pairs is not None
    weights = digest_weights(find_weights(recipe.pairs.generator, "pairs.generator"))
    sampler, row = recipe.pairs.sampler.model_dump_json(), batches.sampler.row(position)
    sample = [batches.cache.index[name][row].as_py() for name in ("key", "text_key")]
    return digest("pair", recipe.seed, position, sampler, weights, *sample, batches.drop)


def pair_rng(seed: int, positions: Sequence[int], device: torch.device | str) -> Rng:
    """Return the random numbers of the pairs at some positions."""
    return Rng(seed, PAIRS, PAIRS, positions, device)
