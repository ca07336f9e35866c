"""Embed the first frames of windows with their captions: the image tokens of multi-modal guidance.

The null prompt of guidance is the empty prompt beside the same first frame: guidance takes the text
away and leaves the picture (the empty set of 003 Eq. 7 stands in the place of the text prompt).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa
import torch

from magicdistill.data_pipeline.config import DataConfig, Prompts
from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.latents.cache import what_shapes
from magicdistill.data_pipeline.latents.text_shards import TextRow, write_texts
from magicdistill.data_pipeline.latents.windows import fetch_windows, windows_of
from magicdistill.data_pipeline.media.sandbox import Sandbox
from magicdistill.data_pipeline.rows import Array, ClipRow, clips_from_table, digest
from magicdistill.data_pipeline.sources.fetching import Scratch
from magicdistill.data_pipeline.stages.embed import load_encoder, text_key, text_rows
from magicdistill.data_pipeline.stages.encode import REPORT_SCHEMA, frames_of, to_pixels


@dataclass(frozen=True)
class EmbedFirstFramesJob:
    """Everything that a process needs which embeds first frames."""

    config: DataConfig
    fingerprint: str
    """Fingerprint of the encoders for which the keys were made."""
    cache_root: AnyPath

    @property
    def prompts(self) -> Prompts:
        """How captions are embedded."""
        assert self.config.prompts is not None
        return self.config.prompts


def first_frame_keys(clip: ClipRow, config: DataConfig, fingerprint: str) -> list[str]:
    """Return the keys of the embeddings of a clip's rows, in the order of `facts_of`.

    A key is a hash of everything that shapes an embedding: the frame, the caption and the encoders.
    """
    assert config.prompts is not None
    bucket = config.bucket_of(clip.width, clip.height)
    own = text_key(clip.video.caption, config.prompts, fingerprint)
    stride = config.prompts.image_token_stride
    return [
        digest("first frame", *what_shapes(clip, window, bucket), stride, own)
        for window in windows_of(clip, bucket, config.windows_per_clip, config.flip)
    ]


class EmbedFirstFrames:
    """Writes one text shard for each table of clips and returns a report on every clip.

    A clip that can no longer be decoded, or whose caption the encoder cannot take, is reported as
    failed and is not in the shard.
    """

    def __init__(self, job: EmbedFirstFramesJob) -> None:
        self._job, self._config = job, job.config
        self._encoder = load_encoder(job.prompts, job.fingerprint)
        if not self._encoder.sees_images:
            raise RuntimeError(f"the encoder in {job.prompts.encoder} cannot see first frames")
        decoder = job.config.decoder
        self._sandbox = Sandbox(decoder.timeout_s, decoder.num_attempts)
        self._scratch = Scratch()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return one report for each clip of the table; an empty failure means success."""
        reports: list[dict[str, str]] = []
        texts: dict[str, TextRow] = {}
        for clip in clips_from_table(table):
            found = self._embed(clip)
            failure = found if isinstance(found, str) else ""
            reports.append({"clip_id": clip.clip_id, "failure": failure})
            if not isinstance(found, str):
                keys = first_frame_keys(clip, self._config, self._job.fingerprint)
                texts |= zip(keys, found, strict=True)
        self._scratch.clear()
        if texts:
            write_texts(self._job.cache_root, texts)
        return pa.Table.from_pylist(reports, schema=REPORT_SCHEMA)

    def _embed(self, clip: ClipRow) -> list[TextRow] | str:
        """Return the embeddings of a clip's rows, or why there are none."""
        config = self._config
        bucket = config.bucket_of(clip.width, clip.height)
        outcome = fetch_windows(
            self._sandbox, self._scratch, clip, bucket, config.windows_per_clip, num_frames=1
        )
        if outcome.failure:
            return outcome.failure
        num_rows = len(outcome.value) * (2 if config.flip else 1)
        frames = [frames_of(row, outcome.value, config) for row in range(num_rows)]
        try:
            rows = [*self._rows(frames, clip.video.caption)]
        except ValueError as error:  # the caption has the encoder's image token
            return str(error)
        return rows if all(row.is_sound for row in rows) else "embedding: not finite"

    def _rows(self, frames: list[Array], caption: str) -> Iterator[TextRow]:
        """Yield the embeddings of frames (1, h, w, 3) with a caption, a batch at a time."""
        prompts = self._job.prompts
        for first in range(0, len(frames), prompts.batch_size):
            batch = frames[first : first + prompts.batch_size]
            device = next(self._encoder.parameters()).device
            images = to_pixels(batch, device, torch.float32)[:, :, 0]
            captioned = self._encoder([caption] * len(batch), images)
            null = captioned if not caption else self._encoder.null(len(batch), images)
            pairs = zip(text_rows(captioned, prompts), text_rows(null, prompts), strict=True)
            yield from (replace(row, null=row_null) for row, row_null in pairs)
