"""Training samples by position: a function of rank, accumulation step and micro-batch alone."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from magicdistill.data_pipeline.config import DataConfig, Prompts
from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.latents.cache import LatentCache
from magicdistill.data_pipeline.latents.row_order import RowOrder, open_row_order
from magicdistill.data_pipeline.latents.text_shards import TextRow
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.objectives.types import Batch
from magicdistill.platform.config.sections import ScheduleConfig
from magicdistill.platform.runs.logs import ExplainedError


class Batches(Protocol):
    """Where the training samples of a rank come from."""

    def __call__(self, step: int, micro: int) -> Batch:
        """Return a micro-batch of an accumulation step for this rank, the same at every call."""
        ...


def deal(
    schedule: ScheduleConfig, sequence_parallel: int, *, rank: int, world_size: int
) -> "Positions":
    """Return the positions of a rank, the same for all ranks of a sequence group.

    Raises ValueError if the workers or the batch do not divide evenly.
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
    """Divides the stream of sample positions among steps, micro-batches and sequence groups."""

    def __init__(self, batch_size: int, parts: int, group: int, num_groups: int) -> None:
        self.batch_size, self.parts, self.share = batch_size, parts, batch_size // parts
        self.group, self.num_groups = group, num_groups

    def __call__(self, step: int, micro: int) -> range:
        """Return the positions of one micro-batch in this group."""
        return self.at(self.index(step, micro))

    def index(self, step: int, micro: int) -> int:
        """Return the index of this group's micro-batch among those of all groups and steps."""
        return step * self.parts + micro * self.num_groups + self.group

    def at(self, index: int) -> range:
        """Return the positions of a micro-batch by its index."""
        return range(index * self.share, (index + 1) * self.share)


class LatentBatches:
    """Reads rows of a latent cache; all rows of an accumulation step are of one bucket."""

    def __init__(
        self,
        data: AnyPath,
        positions: Positions,
        seed: int,
        device: torch.device | str,
        config: DataConfig | None = None,
    ) -> None:
        self.cache, self.positions, self.device = LatentCache(data), positions, device
        demand_image_tokens(self.cache, config and config.prompts, "data")
        weights = config.mixture_weights if config else {}
        self.sampler = open_row_order(self.cache.index, weights, positions.batch_size, seed)
        self.seed = seed
        self.drop = config.prompts.drop if config and config.prompts else 0.0

    def __call__(self, step: int, micro: int) -> Batch:
        """Read a micro-batch."""
        return self.at(self.positions.index(step, micro))

    def rows(self, index: int) -> list[int]:
        """Return the rows of the cache that make up a micro-batch."""
        return [self.sampler.row(position) for position in self.positions.at(index)]

    def at(self, index: int) -> Batch:
        """Read a micro-batch, of this group or another, by its index."""
        positions, rows = self.positions.at(index), self.rows(index)
        dropped = [is_dropped(self.seed, position, self.drop) for position in positions]
        return collate(self.cache, rows, positions, self.device, dropped)


def demand_glyphs(cache: LatentCache, prompts: Prompts | None, field: str) -> None:
    """Raise ExplainedError where a network reads quoted words and the cache of its prompts has
    none; `field` is the recipe's field of the data.
    """
    if prompts is not None and cache.text(cache.read(0).text_key).glyphs is None:
        raise ExplainedError(
            f"{field}.prompts.encoder {prompts.encoder}: the latent cache {cache.version} has no "
            "glyphs, which this network reads beside the text; name the encoders of "
            "HunyuanVideo-1.5 and curate with this recipe (jobs/curate.py)"
        )


def demand_image_tokens(cache: LatentCache, prompts: Prompts | None, field: str) -> None:
    """Raise ExplainedError where a recipe asks for image tokens and its cache has none, or fewer.

    `field` is the recipe's field of the data.
    """
    stride = prompts.image_token_stride if prompts else None
    if stride is not None and cache.text(cache.read(0).text_key).image_tokens is None:
        raise ExplainedError(
            f"{field}.prompts.image_token_stride {stride}: the latent cache {cache.version} has no "
            "image tokens; curate it with this recipe (jobs/curate.py), or leave the stride out"
        )


class PixelBatches:
    """Reads clip windows, uint8 (n t y x 3), from one memory-mapped file."""

    def __init__(
        self, data: AnyPath, positions: Positions, seed: int, device: torch.device | str
    ) -> None:
        self.frames = np.load(str(data), mmap_mode="r")
        self.positions, self.device = positions, device
        self.sampler = RowOrder(len(self.frames), seed)

    def __call__(self, step: int, micro: int) -> Batch:
        """Read a micro-batch of pixels in [-1, 1]."""
        positions = self.positions(step, micro)
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
    """Read rows of a cache as a batch.

    The first latent frame is the image prior, unless the cache holds another one.
    Rows marked in `dropped` get the null prompt instead of their own.
    """
    read = [cache.read(row) for row in rows]
    x0 = torch.stack([row.latents for row in read]).float().to(device)
    x0, prior = x0.unbind(1) if x0.ndim == 6 else (x0, x0[:, :, :1])
    own = [cache.text(row.text_key) for row in read]
    nulls = [text.null or cache.text() for text in own]
    given = own
    if dropped is not None:
        choices = zip(own, nulls, dropped, strict=True)
        given = [null if drop else text for text, null, drop in choices]
    conditions, null = (_conditions(texts, prior) for texts in (given, nulls))
    return Batch(x0, conditions, positions, null=null)


def _conditions(texts: Sequence[TextRow], image_prior: torch.Tensor) -> Conditions:
    images = [text.image_tokens for text in texts if text.image_tokens is not None]
    glyphs = [text.glyphs for text in texts if text.glyphs is not None]
    masks = [text.glyph_mask for text in texts if text.glyph_mask is not None]
    return Conditions(
        text=torch.stack([text.tokens for text in texts]).float(),
        text_mask=torch.stack([text.mask for text in texts]),
        pooled=torch.stack([text.pooled for text in texts]).float(),
        image_prior=image_prior,
        image_tokens=torch.stack(images).float() if images else None,
        glyphs=torch.stack(glyphs).float() if glyphs else None,
        glyph_mask=torch.stack(masks) if masks else None,
    ).to(image_prior.device)
