"""Encode the windows of clips with the VAE and write them as shards of the latent cache."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from magicdistill.data_pipeline.config import DataConfig
from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.latents.cache import LatentRow, RowFacts, row_facts, write_shard
from magicdistill.data_pipeline.latents.windows import fetch_windows, windows_of
from magicdistill.data_pipeline.media.sandbox import Sandbox
from magicdistill.data_pipeline.rows import Array, ClipRow, clips_from_table
from magicdistill.data_pipeline.sources.fetching import Scratch

if TYPE_CHECKING:
    from magicdistill.models.networks.autoencoder.vae import VideoVae


@dataclass(frozen=True)
class EncodeJob:
    """Everything that an encoding process needs."""

    config: DataConfig
    vae_directory: Path
    vae_fingerprint: str
    """Fingerprint of the VAE for which the cache's keys were made."""
    cache_root: AnyPath


REPORT_SCHEMA = pa.schema([("clip_id", pa.string()), ("failure", pa.string())])


def load_vae(directory: Path) -> "VideoVae":
    """Load a VAE; its packages take seconds to import, so they are imported only here."""
    from magicdistill.models.networks.autoencoder.vae import VideoVae

    return VideoVae.load(directory)


def fingerprint_of(directory: Path) -> str:
    """Return the fingerprint of a VAE: equal fingerprints mean equal latents."""
    return load_vae(directory).fingerprint


class Encode:
    """Writes one shard for each table of clips and returns a report on every clip.

    The VAE's posterior mean is stored. A clip that can no longer be decoded, or whose latents are
    not finite, is reported as failed and is not in the shard.
    """

    def __init__(self, job: EncodeJob) -> None:
        config = self._config = job.config
        self._root, self._fingerprint = job.cache_root, job.vae_fingerprint
        self._device = torch.device("cuda" if config.encoding.num_gpus_per_actor else "cpu")
        vae = load_vae(job.vae_directory)
        if vae.fingerprint != job.vae_fingerprint:
            raise RuntimeError(f"the VAE in {job.vae_directory}, or its code, changed meanwhile")
        self._compute_dtype = getattr(torch, config.encoding.compute_dtype)
        self._stored_dtype = getattr(torch, config.encoding.stored_dtype)
        self._vae = vae.to(self._device, self._compute_dtype)
        self._sandbox = Sandbox(config.decoder.timeout_s, config.decoder.num_attempts)
        self._scratch = Scratch()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return one report for each clip of the table; an empty failure means success."""
        reports: list[dict[str, str]] = []
        rows: list[LatentRow] = []
        windows = self._windows(clips_from_table(table), reports)
        for _, alike in groupby(windows, key=lambda item: item[0].bucket):
            # batches span clips, because encoding single windows is slow
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
        """Yield the windows (f, h, w, 3) of all clips, and append a report for each clip."""
        config = self._config
        for clip in clips:
            bucket = config.bucket_of(clip.width, clip.height)
            outcome = fetch_windows(
                self._sandbox, self._scratch, clip, bucket, config.windows_per_clip
            )
            reports.append({"clip_id": clip.clip_id, "failure": outcome.failure})
            if outcome.failure:
                continue
            for index, facts in enumerate(facts_of(clip, config, self._fingerprint)):
                yield facts, frames_of(index, outcome.value, config)

    @torch.inference_mode()
    def _encode(self, batch: Sequence[tuple[RowFacts, Array]]) -> list[LatentRow]:
        clips = [frames for _, frames in batch]
        pixels = to_pixels(clips, self._device, self._compute_dtype)
        latents = self._vae.encode(pixels)
        if self._vae.pads_prior:
            prior = self._vae.image_prior(pixels, latents, pixels.shape[2])
            latents = torch.stack([latents, prior], dim=1)
        stored = latents.to("cpu", self._stored_dtype)
        return [LatentRow(facts, row) for (facts, _), row in zip(batch, stored, strict=True)]


def facts_of(clip: ClipRow, config: DataConfig, vae_fingerprint: str) -> list[RowFacts]:
    """Return the index entries of a clip's rows: its windows, each followed by its mirror image.

    Raises:
        ValueError: if the clip is shorter than a window.
    """
    bucket, dtypes = config.bucket_of(clip.width, clip.height), config.encoding.dtypes
    return [
        row_facts(clip, window, bucket, vae_fingerprint, dtypes)
        for window in windows_of(clip, bucket, config.windows_per_clip, config.flip)
    ]


def frames_of(index: int, windows: Array, config: DataConfig) -> Array:
    """Return a row's frames, uint8 RGB (f, h, w, 3), from the clip's windows (n, f, h, w, 3)."""
    if not config.flip:
        return windows[index]
    return np.flip(windows[index // 2], axis=2) if index % 2 else windows[index // 2]


def to_pixels(
    clips: Sequence[Array], device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "n 3 f h w"]:
    """Return clips of uint8 RGB (f, h, w, 3) as one tensor in [-1, 1], the VAE's input."""
    scaled = torch.from_numpy(np.stack(clips)).to(device, dtype) / 127.5 - 1
    return rearrange(scaled, "n f h w c -> n c f h w")


def finite_clips(rows: Sequence[LatentRow], reports: Sequence[dict[str, str]]) -> list[LatentRow]:
    """Return the rows of clips whose latents are all finite; mark the others' reports as failed."""
    bad = {row.facts.clip_id for row in rows if not torch.isfinite(row.latents).all()}
    for report in reports:
        if report["clip_id"] in bad:
            report["failure"] = "latents: not finite"
    return [row for row in rows if row.facts.clip_id not in bad]
