"""Training samples by position: rank, window and micro-batch decide, nothing else."""

import pickle
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from magicdistill.data_pipeline.config import DataConfig
from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.latents.cache import NULL_TEXT, LatentCache, TextRow
from magicdistill.data_pipeline.latents.row_order import Sampler, open_sampler
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.objectives.config import VaeMethod
from magicdistill.models.objectives.types import Batch
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.config.sections import ScheduleConfig
from magicdistill.platform.data.ray_data_stream import Maker, Stream, Workshop
from magicdistill.platform.training.loop import Batches

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
    from magicdistill.platform.data.noise_data_pairs import (  # which read batches
        PairMaker,
        StoredPairs,
    )

    make = PairMaker(recipe) if recipe.pairs.stored is None else StoredPairs(recipe, batches)
    return lambda index: make(batches.at(index))


def deal(
    schedule: ScheduleConfig, sequence_parallel: int, *, rank: int, world_size: int
) -> "Positions":
    """Return the positions of a rank, the same for all ranks of a sequence group.

    Raises ValueError where workers or batch do not divide.
    """
    groups, rest = divmod(world_size, sequence_parallel)
    if rest:
        raise ValueError(
            f"{world_size} workers do not divide into groups of cluster.sequence_parallel "
            f"{sequence_parallel}"
        )
    parts = groups * schedule.num_micro_batches
    if schedule.batch_size % parts:
        raise ValueError(
            f"schedule.batch_size {schedule.batch_size} does not divide over {groups} groups of "
            f"{sequence_parallel} workers x {schedule.num_micro_batches} micro-batches"
        )
    return Positions(schedule.batch_size, parts, rank // sequence_parallel, groups)


class Positions:
    """Deals the stream of sample positions out to windows, micro-batches and sequence groups."""

    def __init__(self, batch_size: int, parts: int, group: int, num_groups: int) -> None:
        self.batch_size, self.parts, self.share = batch_size, parts, batch_size // parts
        self.group, self.num_groups = group, num_groups

    def __call__(self, window: int, micro: int) -> range:
        """Return the positions of one micro-batch in this group."""
        return self.at(self.index(window, micro))

    def index(self, window: int, micro: int) -> int:
        """Return the number of a micro-batch of this group among those of all groups."""
        return window * self.parts + micro * self.num_groups + self.group

    def at(self, index: int) -> range:
        """Return the positions of a micro-batch by its number."""
        return range(index * self.share, (index + 1) * self.share)


class LatentBatches:
    """Rows of a latent cache; those of a window have one bucket."""

    def __init__(
        self,
        data: AnyPath,
        positions: Positions,
        seed: int,
        device: torch.device | str,
        config: DataConfig | None = None,
    ) -> None:
        self.cache, self.positions, self.device = LatentCache(data), positions, device
        weights = config.mixture_weights if config else {}
        self.sampler = open_sampler(self.cache.index, weights, positions.batch_size, seed)
        self.seed = seed
        self.drop = config.prompts.drop if config and config.prompts else 0.0

    def __call__(self, window: int, micro: int) -> Batch:
        """Read a micro-batch."""
        return self.at(self.positions.index(window, micro))

    def rows(self, index: int) -> list[int]:
        """Return the rows of the cache that a micro-batch reads."""
        return [self.sampler.row(position) for position in self.positions.at(index)]

    def at(self, index: int) -> Batch:
        """Read a micro-batch, of this group or another, by its number."""
        positions, rows = self.positions.at(index), self.rows(index)
        dropped = [is_dropped(self.seed, position, self.drop) for position in positions]
        return collate(self.cache, rows, positions, self.device, dropped)


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


class PixelBatches:
    """Windows of frames, uint8 (n t y x 3) in one memory-mapped file."""

    def __init__(
        self, data: AnyPath, positions: Positions, seed: int, device: torch.device | str
    ) -> None:
        self.frames = np.load(str(data), mmap_mode="r")
        self.positions, self.device = positions, device
        self.sampler = Sampler(len(self.frames), seed)

    def __call__(self, window: int, micro: int) -> Batch:
        """Read a micro-batch of pixels in [-1, 1]."""
        positions = self.positions(window, micro)
        frames = np.stack([self.frames[self.sampler.row(position)] for position in positions])
        pixels = torch.from_numpy(frames).to(self.device).permute(0, 4, 1, 2, 3)
        return Batch(pixels.float() / 127.5 - 1, None, positions)


def is_dropped(seed: int, position: int, share: float) -> bool:
    """Tell whether a sample gets the null prompt: a function of seed and position alone."""
    if not share:
        return False
    bits = np.random.Philox(key=[seed, position], counter=[0, 0, 0, 1])  # not the sampler's
    return bool(np.random.Generator(bits).random() < share)


def collate(
    cache: LatentCache,
    rows: Sequence[int],
    positions: Sequence[int],
    device: torch.device | str,
    dropped: Sequence[bool] | None = None,
) -> Batch:
    """Read rows of a cache as a batch; the first latent frame is the image prior.

    Rows that are `dropped` get the null prompt instead of their own.
    """
    read = [cache.read(row) for row in rows]
    x0 = torch.stack([row.latents for row in read]).float().to(device)
    keys = [row.text_key for row in read]
    if dropped is not None:
        keys = [NULL_TEXT if drop else key for key, drop in zip(keys, dropped, strict=True)]
    prompts = [cache.text(key) for key in keys]
    conditions = _conditions(prompts, x0[:, :, :1])
    return Batch(
        x0, conditions, positions, null=_conditions([cache.text()] * len(read), x0[:, :, :1])
    )


def _conditions(texts: Sequence[TextRow], image_prior: torch.Tensor) -> Conditions:
    device = image_prior.device
    return Conditions(
        text=torch.stack([text.tokens for text in texts]).float().to(device),
        text_mask=torch.stack([text.mask for text in texts]).to(device),
        pooled=torch.stack([text.pooled for text in texts]).float().to(device),
        image_prior=image_prior,
    )
