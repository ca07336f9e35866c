"""The actors of an evaluation: they make videos, keep them in files, and measure them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from einops import rearrange
from torch import Tensor

from magicdistill.data_pipeline.latents.windows import read_windows
from magicdistill.data_pipeline.media.video import write_mp4
from magicdistill.data_pipeline.rows import ClipRow
from magicdistill.models.metrics.suite import Measured, MetricSuite
from magicdistill.models.objectives.config import SamplerConfig
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.evaluation.contestants import (
    Contestant,
    Maker,
    Request,
    Video,
    fitted,
)
from magicdistill.platform.inference.clip_generator import ClipGenerator
from magicdistill.platform.inference.contact_sheets import to_uint8
from magicdistill.platform.inference.variants import REAL, Variant

TRUTH = Variant(REAL, None, SamplerConfig())


@dataclass(frozen=True)
class VideoBatch:
    """Videos that one worker generates and measures at once."""

    way: Variant | Contestant
    rows: range
    """Rows of the latent cache whose first frames are used."""
    sample: int
    """Index of the video among those of the same first frame."""


@dataclass(frozen=True)
class MeasuredBatch:
    """What came of a batch of videos."""

    measured: Measured | None
    """None where a pixel is not finite."""
    changes: Sequence[str] = ()
    """What had to be changed of a contestant's videos for the protocol's shape."""


@ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=1)
class ProtocolEvaluator:
    """An actor that generates batches of videos and measures them against the real clips."""

    def __init__(self, recipe_json: str) -> None:
        recipe = Recipe.model_validate_json(recipe_json)
        assert recipe.evaluation is not None
        torch.set_num_threads(recipe.cluster.threads_per_worker)
        self.seed, self.config = recipe.seed, recipe.evaluation
        self.clip_generator = ClipGenerator(recipe.model.model_dump_json())
        networks = self.config.networks_path
        device, window = self.clip_generator.device, self.config.fvd_frames
        self.suite = MetricSuite(networks, device, self.config.counted, window)
        self.makers: dict[str, Maker] = {}

    @torch.no_grad()
    def score(
        self, part: VideoBatch, cache: Any, clips: Sequence[ClipRow], kept: Sequence[Path]
    ) -> MeasuredBatch:
        """Measure a batch made of the rows of `clips`, and keep its videos in files.

        Args:
            part: the batch.
            cache: the latent cache of its rows.
            clips: what the rows were made of.
            kept: the file of each video; none for the real clips.
        """
        real, way, changes = self._real(cache, part.rows, clips), part.way, []
        if not isinstance(way, Variant):
            pixels, changes = self._elsewhere(way, part, real, clips, kept)
        elif way.weights is None:
            pixels = real
        else:
            pixels, _, _ = self.clip_generator.make(
                way,
                cache,
                part.rows,
                self.seed,
                sample_index=part.sample,
                num_frames=self.config.num_frames,
            )
        if not pixels.isfinite().all():
            return MeasuredBatch(None, changes)
        fps = self.config.data.bucket.fps
        if isinstance(way, Variant):
            for path, frames in zip(kept, to_frames(pixels), strict=way.weights is not None):
                _keep(path, Video(frames, fps))
        return MeasuredBatch(self.suite.measure(pixels, real, fps), changes)

    def _elsewhere(
        self,
        way: Contestant,
        part: VideoBatch,
        real: Tensor,
        clips: Sequence[ClipRow],
        kept: Sequence[Path],
    ) -> tuple[Tensor, list[str]]:
        """Return a contestant's videos in the protocol's shape, and what was changed of them."""
        if way.name not in self.makers:
            self.makers.clear()  # a GPU need not have room for two
            self.makers[way.name] = way.open(self.clip_generator.device)
        frames, changes = [], []
        for request, path in zip(self._requests(part, real, clips, kept), kept, strict=True):
            video = self.makers[way.name](request)
            if way.keeps:
                _keep(path, video)
            shown, change = fitted(video, request.shape)
            frames.append(shown)
            changes.append(change)
        return to_pixels(np.stack(frames), self.clip_generator.device), changes

    @torch.no_grad()
    def requests(
        self, part: VideoBatch, cache: Any, clips: Sequence[ClipRow], kept: Sequence[Path]
    ) -> list[Request]:
        """Return what is asked for in a batch."""
        return [*self._requests(part, self._real(cache, part.rows, clips), clips, kept)]

    def _requests(
        self, part: VideoBatch, real: Tensor, clips: Sequence[ClipRow], kept: Sequence[Path]
    ) -> Iterator[Request]:
        """Yield first frames of the real clips, prompts and seeds."""
        config = self.config
        shape = config.data.bucket
        if config.num_frames is not None:
            shape = shape.model_copy(update={"num_frames": config.num_frames})
        firsts = to_frames(real[:, :, :1])
        for row, first, clip, path in zip(part.rows, firsts, clips, kept, strict=True):
            (drawn,) = np.random.SeedSequence([self.seed, row, part.sample]).generate_state(1)
            yield Request(path.stem, first[0], clip.video.caption or "", int(drawn), shape)

    def _real(self, cache: Any, rows: range, clips: Sequence[ClipRow]) -> Tensor:
        """Return the real clips or pictures (b 3 t y x)."""
        if self.config.real == "decoded":
            return self.clip_generator.make(TRUTH, cache, rows, self.seed)[0]
        data = self.config.data
        frames = np.concatenate(list(read_windows(clips, data.bucket, 1, data.decoder)))
        return to_pixels(frames, self.clip_generator.device)


def to_pixels(frames: np.ndarray, device: str) -> Tensor:
    """Return 8-bit frames (b t y x 3) as pixels (b 3 t y x) in [-1, 1]."""
    pixels = torch.from_numpy(frames).to(device).float() / 127.5 - 1
    return rearrange(pixels, "b t y x c -> b c t y x")


def to_frames(pixels: Tensor) -> np.ndarray:
    """Return pixels (b 3 t y x) in [-1, 1] as 8-bit frames (b t y x 3)."""
    return rearrange(to_uint8(pixels), "b c t y x -> b t y x c")


def _keep(path: Path, video: Video) -> None:
    """Write a video's file, in place of one that was made in another way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(path, np.stack(video.frames), video.fps)
