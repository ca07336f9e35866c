"""Where the micro-batches of a rank come from: read in place, or made ahead by other processes."""

import pickle
from dataclasses import replace
from functools import partial

import torch

from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.latents.cache import (
    NULL_TEXT,
    LatentRow,
    committed_rows,
    publish,
    write_shard,
)
from magicdistill.data_pipeline.progress import Bars
from magicdistill.models.objectives.config import VaeMethod
from magicdistill.models.objectives.types import Batch
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.data.batches import Batches, LatentBatches, PixelBatches, Positions, deal
from magicdistill.platform.data.noise_data_pairs import PairMaker, StoredPairs, pair_key
from magicdistill.platform.data.ray_data_stream import Maker, Stream, Workshop, make_items

ROWS_PER_SHARD = 64
READ_AHEAD = 4
"""Micro-batches for each group of workers that readers have ready."""


def open_batches(
    recipe: Recipe,
    data: AnyPath,
    *,
    num_windows: int = 1,
    rank: int,
    world_size: int,
    device: torch.device | str,
) -> Batches:
    """Open a rank's samples: a latent cache, or pixel windows where a VAE is trained.

    Other processes read them, through Ray Data, where the recipe has readers or makers of pairs;
    all ranks then call alike, for at most `num_windows` windows.
    """
    positions = deal(
        recipe.schedule, recipe.cluster.sequence_parallel, rank=rank, world_size=world_size
    )
    if isinstance(recipe.method, VaeMethod):
        return PixelBatches(data, positions, recipe.seed, device)
    if recipe.data.num_readers or recipe.pairs is not None:
        workshop = open_workshop(recipe, data, positions)
        takers = recipe.cluster.sequence_parallel
        return StreamedBatches(workshop, positions, num_windows, takers, device)
    return LatentBatches(data, positions, recipe.seed, device, recipe.data)


def open_workshop(recipe: Recipe, data: AnyPath, positions: "Positions") -> Workshop:
    """Return who reads a recipe's micro-batches and makes their pairs, by their index."""
    pairs = recipe.pairs
    example = LatentBatches(data, positions, recipe.seed, "cpu", recipe.data).at(0)
    num_bytes = len(pickle.dumps(example)) + 2 * example.x0.nbytes * bool(pairs)
    return Workshop(
        partial(build_maker, recipe, data, positions),
        num_actors=pairs.num_actors if pairs else recipe.data.num_readers,
        gpus_per_actor=pairs.gpus_per_actor if pairs else 0.0,
        buffer=pairs.buffer if pairs else READ_AHEAD * positions.num_groups,
        item_bytes=num_bytes,
    )


def build_maker(recipe: Recipe, data: AnyPath, positions: "Positions") -> Maker:
    """Return what makes a micro-batch by its index, with its pairs where the recipe has some."""
    batches = LatentBatches(data, positions, recipe.seed, "cpu", recipe.data)
    if recipe.pairs is None:
        return batches.at
    make = PairMaker(recipe) if recipe.pairs.stored is None else StoredPairs(recipe, batches)
    return lambda index: make(batches.at(index))


class StreamedBatches:
    """Micro-batches that other processes make ahead of need, the same ones as by `LatentBatches`.

    All ranks call alike. A window is kept while it is asked for; the next one is on its way.
    """

    def __init__(
        self,
        workshop: Workshop,
        positions: Positions,
        num_windows: int,
        num_takers: int,
        device: torch.device | str,
    ) -> None:
        self.workshop, self.positions, self.device = workshop, positions, device
        self.num_windows, self.num_takers = num_windows, num_takers
        self.stream: Stream | None = None
        self._window = -1
        self._held: dict[int, Batch] = {}

    def __call__(self, window: int, micro: int) -> Batch:
        """Return a micro-batch, waiting for it where it is not made yet."""
        stream = self._turn_to(window)
        if micro not in self._held:
            index = self.positions.index(window, micro)
            self._held[micro] = stream.take(index)
            if (ahead := index + self.positions.num_groups) < self._stop:
                stream.ask(ahead)
        return self._held[micro].to(self.device)

    def supply(self) -> dict[str, float]:
        """Return samples made and used a second, and how many wait."""
        assert self.stream is not None, "nothing was asked for yet"
        now, share = self.stream.supply(), self.positions.share
        return {
            "supply/made_per_second": now.num_made * share / now.seconds,
            "supply/used_per_second": now.num_taken * share / now.seconds,
            "supply/waiting": now.num_waiting * share,
        }

    @property
    def _stop(self) -> int:
        return self.num_windows * self.positions.parts

    def _turn_to(self, window: int) -> Stream:
        if self.stream is None or window not in (self._window, self._window + 1):
            first = window * self.positions.parts
            self.stream = Stream(self.workshop, first, self._stop, self.num_takers)
        if window != self._window:
            self._window, self._held = window, {}
        return self.stream


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
