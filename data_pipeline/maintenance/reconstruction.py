"""Decode a sample of the cached latents and compare it with the clips that they encode."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from magicdistill.data_pipeline.config import DataConfig
from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.latents.cache import read_index, read_row
from magicdistill.data_pipeline.latents.windows import fetch_windows, num_resampled
from magicdistill.data_pipeline.ledger.ledger import Ledger
from magicdistill.data_pipeline.media.sandbox import Sandbox
from magicdistill.data_pipeline.rows import Array, ClipRow
from magicdistill.data_pipeline.sources.fetching import Scratch
from magicdistill.data_pipeline.stages.encode import facts_of, frames_of, to_pixels
from magicdistill.models.metrics.fidelity import psnr_db
from magicdistill.models.networks.autoencoder.vae import VideoVae

SAMPLE_SIZE = 8
"""Number of rows in a sample."""
NUM_CANDIDATES = 1000
"""Number of rows among which the sample is searched; some may be of another VAE or recipe."""


@dataclass(frozen=True)
class Reconstruction:
    """How closely the VAE reproduces one row of the cache, or why that is unknown."""

    source_id: str
    psnr_db: float | None = None
    """Peak signal-to-noise ratio against the clip's pixels; None if they cannot be read."""
    failure: str = ""


@dataclass(frozen=True)
class _Origin:
    """The recipe and the clip from which a row was made."""

    config: DataConfig
    clip: ClipRow
    index: int
    """Position of the row among the clip's rows: its windows, each followed by its mirror image."""


def reconstruct(
    configs: Sequence[DataConfig], vae_directory: Path, root: AnyPath, size: int = SAMPLE_SIZE
) -> Iterator[Reconstruction]:
    """Decode some rows that these configs made with this VAE; always the same ones of a cache.

    Keys are hashes, so the rows with the smallest keys are a fair sample.

    Args:
        configs: the recipes by which rows were made; other rows are ignored.
        vae_directory: a folder written by `VideoVae.save`.
        root: the folder of ledger and latents.
        size: largest number of rows.

    Raises:
        CacheError: if a row is damaged.
    """
    vae, cache = VideoVae.load(vae_directory), root / "latents"
    vae.to("cuda" if torch.cuda.is_available() else "cpu").enable_tiling()
    entries = read_index(cache).sort_by("key")[:NUM_CANDIDATES].to_pylist()
    by_key = {entry["key"]: entry for entry in entries}
    ids = {entry["clip_id"] for entry in entries}
    origins = _origins(by_key, Ledger(root / "ledger"), ids, configs, vae.fingerprint)
    timeout_s = max(config.decoder.timeout_s for config in configs)
    with Sandbox(timeout_s) as sandbox, Scratch() as scratch:
        for key in sorted(origins)[:size]:
            config, clip = origins[key].config, origins[key].clip
            bucket = config.bucket_of(clip.width, clip.height)
            windows = fetch_windows(sandbox, scratch, clip, bucket, config.windows_per_clip)
            if windows.failure:
                yield Reconstruction(clip.video.source_id, failure=windows.failure)
                continue
            frames = frames_of(origins[key].index, windows.value, config)
            latents = read_row(cache, by_key[key]).own
            yield Reconstruction(clip.video.source_id, _psnr_db(latents, frames, vae))


def _origins(
    keys: Collection[str],
    ledger: Ledger,
    clip_ids: Collection[str],
    configs: Sequence[DataConfig],
    vae_fingerprint: str,
) -> dict[str, _Origin]:
    """Return the origin of each key that a config would make from a row of the ledger."""
    found: dict[str, _Origin] = {}
    for config in configs:
        for clip in ledger.find(clip_ids, config.policy):
            bucket = config.bucket_of(clip.width, clip.height)
            if clip.failure or num_resampled(clip, bucket) < bucket.num_frames:
                continue
            for index, facts in enumerate(facts_of(clip, config, vae_fingerprint)):
                if facts.key in keys:
                    found[facts.key] = _Origin(config, clip, index)
    return found


@torch.inference_mode()
def _psnr_db(latents: Float[Tensor, "c f h w"], frames: Array, vae: VideoVae) -> float:
    """Return the PSNR in dB between a clip (f, h, w, 3) and its decoded latents (c, f, h, w)."""
    wanted = to_pixels([frames], vae.mean.device, vae.mean.dtype)
    return psnr_db(vae.decode(latents[None].to(wanted)), wanted).item()
