"""Open the micro-batches of a rank: read in place, or made ahead of need by other processes."""

import pickle
from dataclasses import replace
from functools import partial

import torch

from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.latents.cache import LatentRow, committed_rows, publish, write_shard
from magicdistill.data_pipeline.latents.text_shards import NULL_TEXT
from magicdistill.data_pipeline.progress import Bars
from magicdistill.models.objectives.types import Batch
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.data.batches import Batches, LatentBatches, PixelBatches, Positions, deal
from magicdistill.platform.data.noise_data_pairs import PairGenerator, StoredPairs, pair_key
from magicdistill.platform.data.ray_data_stream import Producer, ProducerConfig, Stream, make_items

ROWS_PER_SHARD = 64
READ_AHEAD = 4
"""Micro-batches that readers keep ready for each sequence group."""


def open_batches(
    recipe: Recipe,
    data: AnyPath,
    *,
    num_steps: int = 1,
    rank: int,
    world_size: int,
    device: torch.device | str,
) -> Batches:
    """Open a rank's samples: a latent cache, or pixel windows where a VAE is trained.

    If the recipe has readers or producers of pairs, these read them through Ray Data; then all
    ranks must call alike, for at most `num_steps` accumulation steps.
    """
    positions = deal(
        recipe.schedule, recipe.cluster.sequence_parallel, rank=rank, world_size=world_size
    )
    if recipe.method.data == "pixels":
        return PixelBatches(data, positions, recipe.seed, device)
    if recipe.data.num_readers or recipe.pairs is not None:
        producers = producers_for(recipe, data, positions)
        num_consumers = recipe.cluster.sequence_parallel
        return StreamedBatches(producers, positions, num_steps, num_consumers, device)
    return LatentBatches(data, positions, recipe.seed, device, recipe.data)


def producers_for(recipe: Recipe, data: AnyPath, positions: "Positions") -> ProducerConfig:
    """Return the producers that read a recipe's micro-batches and make their pairs."""
    pairs = recipe.pairs
    example = LatentBatches(data, positions, recipe.seed, "cpu", recipe.data).at(0)
    num_bytes = len(pickle.dumps(example)) + 2 * example.x0.nbytes * bool(pairs)
    return ProducerConfig(
        partial(build_producer, recipe, data, positions),
        num_actors=pairs.num_actors if pairs else recipe.data.num_readers,
        gpus_per_actor=pairs.gpus_per_actor if pairs else 0.0,
        buffer=pairs.buffer if pairs else READ_AHEAD * positions.num_groups,
        item_bytes=num_bytes,
    )


def build_producer(recipe: Recipe, data: AnyPath, positions: "Positions") -> Producer:
    """Return a function that makes the micro-batch of an index, with its pairs if there are any."""
    batches = LatentBatches(data, positions, recipe.seed, "cpu", recipe.data)
    if recipe.pairs is None:
        return batches.at
    make = PairGenerator(recipe) if recipe.pairs.stored is None else StoredPairs(recipe, batches)
    return lambda index: make(batches.at(index))


class StreamedBatches:
    """Micro-batches that other processes make ahead of need, the same ones as by `LatentBatches`.

    All ranks call alike. A step is kept while it is asked for, and the next one is requested.
    """

    def __init__(
        self,
        producers: ProducerConfig,
        positions: Positions,
        num_steps: int,
        num_consumers: int,
        device: torch.device | str,
    ) -> None:
        self.producers, self.positions, self.device = producers, positions, device
        self.num_steps, self.num_consumers = num_steps, num_consumers
        self.stream: Stream | None = None
        self._step = -1
        self._held: dict[int, Batch] = {}

    def __call__(self, step: int, micro: int) -> Batch:
        """Return a micro-batch, waiting if it is not made yet."""
        stream = self._advance_to(step)
        if micro not in self._held:
            index = self.positions.index(step, micro)
            self._held[micro] = stream.take(index)
            if (ahead := index + self.positions.num_groups) < self._stop:
                stream.ask(ahead)
        return self._held[micro].to(self.device)

    def throughput(self) -> dict[str, float]:
        """Return the samples made and used per second, and how many wait."""
        assert self.stream is not None, "nothing was asked for yet"
        now, share = self.stream.throughput(), self.positions.share
        return {
            "supply/made_per_second": now.num_made * share / now.seconds,
            "supply/used_per_second": now.num_taken * share / now.seconds,
            "supply/waiting": now.num_waiting * share,
        }

    @property
    def _stop(self) -> int:
        return self.num_steps * self.positions.parts

    def _advance_to(self, step: int) -> Stream:
        if self.stream is None or step not in (self._step, self._step + 1):
            first = step * self.positions.parts
            self.stream = Stream(self.producers, first, self._stop, self.num_consumers)
        if step != self._step:
            self._step, self._held = step, {}
        return self.stream


def store_pairs(recipe: Recipe, data: AnyPath, root: AnyPath) -> AnyPath:
    """Write the pairs of a recipe's training as a latent cache, row i pair i; return its version.

    Pairs that are written already are not made again. `data` is the cache that training reads.
    """
    cluster, progress = recipe.cluster, Bars()
    world = cluster.num_workers  # items as in training: the last bits depend on their size
    positions = deal(recipe.schedule, cluster.sequence_parallel, rank=0, world_size=world)
    batches = LatentBatches(data, positions, recipe.seed, "cpu", recipe.data)
    producers = producers_for(recipe, data, positions)
    num_items = recipe.schedule.num_cycles * positions.parts
    keys = [pair_key(recipe, batches, i) for i in range(num_items * positions.share)]
    known = committed_rows(root)
    missing = next((i for i, key in enumerate(keys) if key not in known), None)
    first = num_items if missing is None else missing // positions.share
    rows: list[LatentRow] = []
    progress("pairs", first, num_items)
    for index, item in make_items(producers, first, num_items) if first < num_items else ():
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
