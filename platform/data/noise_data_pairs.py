"""Noise-data pairs of the 1-step stage: a frozen few-step generator makes them on the fly.

Pair i is a function of (seed, i, generator): its noise is drawn for that position, its conditions
are those of the sample that training reads there.
"""

import pickle
from collections.abc import Sequence
from dataclasses import replace

import torch

from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.latents.cache import (
    NULL_TEXT,
    LatentCache,
    LatentRow,
    committed_rows,
    publish,
    write_shard,
)
from magicdistill.data_pipeline.progress import Bars
from magicdistill.data_pipeline.rows import digest
from magicdistill.models.checksums import digest_weights
from magicdistill.models.diffusion.flow import sigma_grid
from magicdistill.models.diffusion.guidance import guided
from magicdistill.models.diffusion.rng import Draws
from magicdistill.models.diffusion.samplers import sample
from magicdistill.models.locations import find_weights
from magicdistill.models.networks.attention import set_kernels
from magicdistill.models.networks.transformer import VelocityModel
from magicdistill.models.objectives.build import trained
from magicdistill.models.objectives.types import Batch, Pair
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.data.batches import LatentBatches, deal, open_workshop
from magicdistill.platform.data.ray_data_stream import make_items

PAIRS = -2
"""The cycle under which pairs draw: no training cycle, and not that of held-out clips."""
ROWS_PER_SHARD = 64


class PairMaker:
    """The frozen generator of a recipe's pairs."""

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
        """Return the batch with a pair for each of its positions, on the processor."""
        own = batch.to(self.device)
        assert own.conditions is not None
        draws = pair_draws(self.seed, own.positions, self.device)
        shape, embeds = own.x0.shape[1:], self.velocity.guidance_embeds
        noise = draws.normal("noise", shape)
        video = sample(
            guided(self.velocity, self.sampler.guidance, own.null, embeds=embeds),
            noise,
            sigma_grid(self.sampler.num_steps, self.sampler.shift, self.device),
            own.conditions,
            sampler=self.sampler.name,
            fresh_noise=lambda step: draws.normal(f"fresh-{step}", shape),
        )
        return replace(own, pair=Pair(noise, video)).to("cpu")


class StoredPairs:
    """Pairs that `store_pairs` wrote; the noise is drawn again."""

    def __init__(self, recipe: Recipe, batches: LatentBatches) -> None:
        assert recipe.pairs is not None and recipe.pairs.stored is not None
        self.cache, self.recipe = LatentCache(recipe.pairs.stored), recipe
        self.batches = batches

    def __call__(self, batch: Batch) -> Batch:
        """Return the batch with its pairs.

        Raises:
            ValueError: if they are not stored, or those of another recipe.
        """
        rows = [self._read(position) for position in batch.positions]
        draws = pair_draws(self.recipe.seed, batch.positions, "cpu")
        noise = draws.normal("noise", batch.x0.shape[1:])
        return replace(batch, pair=Pair(noise, torch.stack([row.latents for row in rows])))

    def _read(self, position: int) -> LatentRow:
        if position >= len(self.cache):
            raise ValueError(f"pairs.stored: only {len(self.cache)} pairs, not {position + 1}")
        row = self.cache.read(position)
        if row.facts.key != pair_key(self.recipe, self.batches, position):
            raise ValueError("pairs.stored: made with another seed, sampler, generator or data")
        return row


def store_pairs(recipe: Recipe, data: AnyPath, root: AnyPath) -> AnyPath:
    """Write the pairs of a recipe's training as a latent cache, row i pair i; return its version.

    Pairs that are written already are not made again. `data` is the cache that training reads.
    """
    cluster, progress = recipe.cluster, Bars()
    world = cluster.num_workers  # items as in training: the last bits depend on their size
    positions = deal(recipe.schedule, cluster.sequence_parallel, rank=0, world_size=world)
    batches = LatentBatches(data, positions, recipe.seed, "cpu", recipe.data)
    workshop = open_workshop(recipe, data, positions)
    num_items = recipe.schedule.num_cycles * positions.parts
    keys = [pair_key(recipe, batches, i) for i in range(num_items * positions.share)]
    known = committed_rows(root)
    missing = next((i for i, key in enumerate(keys) if key not in known), None)
    first = num_items if missing is None else missing // positions.share
    rows: list[LatentRow] = []
    for index, item in make_items(workshop, first, num_items) if first < num_items else ():
        batch: Batch = pickle.loads(item)
        assert batch.pair is not None
        for position, row, video in zip(
            batch.positions, batches.rows(index), batch.pair.video, strict=True
        ):
            facts = replace(batches.cache.read(row).facts, key=keys[position], text_key=NULL_TEXT)
            rows.append(LatentRow(facts, video))
        if len(rows) >= ROWS_PER_SHARD or index + 1 == num_items:
            write_shard(root, rows)
            rows = []
        progress("pairs", index + 1, num_items)
    known = committed_rows(root)
    return publish(root, [known[key] for key in keys], recipe.data.null_text)


def pair_key(recipe: Recipe, batches: LatentBatches, position: int) -> str:
    """Return the name of a pair: everything that it is a function of, its sample included."""
    assert recipe.pairs is not None
    weights = digest_weights(find_weights(recipe.pairs.generator, "pairs.generator"))
    sampler, row = recipe.pairs.sampler.model_dump_json(), batches.sampler.row(position)
    sample = [batches.cache.index[name][row].as_py() for name in ("key", "text_key")]
    return digest("pair", recipe.seed, position, sampler, weights, *sample, batches.drop)


def pair_draws(seed: int, positions: Sequence[int], device: torch.device | str) -> Draws:
    """Return the randomness of pairs by their position."""
    return Draws(seed, PAIRS, PAIRS, positions, device)
