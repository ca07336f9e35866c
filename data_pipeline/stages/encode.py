"""Encode the windows of clips into cache shards."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from einops import rearrange

from magicdistill.data_pipeline.cache import LatentRow, RowFacts, row_facts, write_shard
from magicdistill.data_pipeline.child import Child
from magicdistill.data_pipeline.clips import Array, ClipRow, clips_from_table
from magicdistill.data_pipeline.config import DataConfig
from magicdistill.data_pipeline.sources.fetching import Scratch
from magicdistill.data_pipeline.storage import AnyPath
from magicdistill.data_pipeline.windows import fetch_windows, windows_of
from magicdistill.models.networks.vae import VideoVae


@dataclass(frozen=True)
class EncodeJob:
    """What an encoding process has to know."""

    config: DataConfig
    vae_directory: Path
    vae_fingerprint: str
    """Of the VAE that the cache's keys were made for."""
    cache_root: AnyPath


REPORT_SCHEMA = pa.schema([("clip_id", pa.string()), ("failure", pa.string())])


class Encode:
    """Writes one shard for each table of clips and reports on every clip.

    The VAE's posterior mean is stored. A clip that can no longer be decoded, or whose latents are
    not finite, is reported and left out of the shard.
    """

    def __init__(self, job: EncodeJob) -> None:
        config = self._config = job.config
        self._root, self._fingerprint = job.cache_root, job.vae_fingerprint
        self._device = torch.device("cuda" if config.encoding.num_gpus_per_actor else "cpu")
        vae = VideoVae.load(job.vae_directory)
        if vae.fingerprint != job.vae_fingerprint:
            raise RuntimeError(f"the VAE in {job.vae_directory}, or its code, changed meanwhile")
        self._compute_dtype = getattr(torch, config.encoding.compute_dtype)
        self._stored_dtype = getattr(torch, config.encoding.stored_dtype)
        self._vae = vae.to(self._device, self._compute_dtype)
        self._child = Child(config.decoder.timeout_s, config.decoder.num_attempts)
        self._scratch = Scratch()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return one report row per clip of the table; an empty failure means encoded."""
        reports: list[dict[str, str]] = []
        rows: list[LatentRow] = []
        windows = self._windows(clips_from_table(table), reports)
        for _, alike in groupby(windows, key=lambda item: item[0].bucket):
            # batches span clips: a lone window is slow
            while batch := list(islice(alike, self._config.encoding.batch_size)):
                rows.extend(self._encode(batch))
        self._scratch.clear()
        kept = finite_clips(rows, reports)
        if kept:
            write_shard(self._root, kept)
        return pa.Table.from_pylist(reports, schema=REPORT_SCHEMA)

    def _windows(
        self, clips: Sequence[ClipRow], reports: list[dict[str, str]]
    ) -> Iterator[tuple[RowFacts, Array]]:
        """Yield the windows (f, h, w, 3) of all clips, adding a report for each clip."""
        config, dtypes = self._config, self._config.encoding.dtypes
        for clip in clips:
            bucket = config.bucket_of(clip.width, clip.height)
            outcome = fetch_windows(
                self._child, self._scratch, clip, bucket, config.windows_per_clip
            )
            reports.append({"clip_id": clip.clip_id, "failure": outcome.failure})
            if outcome.failure:
                continue
            windows = windows_of(clip, bucket, config.windows_per_clip, config.flip)
            for index, window in enumerate(windows):
                frames = outcome.value[index // 2 if config.flip else index]
                facts = row_facts(clip, window, bucket, self._fingerprint, dtypes)
                yield facts, np.flip(frames, axis=2) if window.flipped else frames

    @torch.inference_mode()
    def _encode(self, batch: Sequence[tuple[RowFacts, Array]]) -> list[LatentRow]:
        pixels = torch.from_numpy(np.stack([frames for _, frames in batch]))
        scaled = pixels.to(self._device, self._compute_dtype) / 127.5 - 1
        latents = self._vae.encode(rearrange(scaled, "n f h w c -> n c f h w"))
        stored = latents.to("cpu", self._stored_dtype)
        return [LatentRow(facts, row) for (facts, _), row in zip(batch, stored, strict=True)]


def finite_clips(rows: Sequence[LatentRow], reports: Sequence[dict[str, str]]) -> list[LatentRow]:
    """Return the rows of clips whose latents are all finite; report the other clips as failed."""
    bad = {row.facts.clip_id for row in rows if not torch.isfinite(row.latents).all()}
    for report in reports:
        if report["clip_id"] in bad:
            report["failure"] = "latents: not finite"
    return [row for row in rows if row.facts.clip_id not in bad]
