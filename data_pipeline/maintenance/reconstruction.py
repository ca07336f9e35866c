"""Decode a sample of the latents and compare it with the clips that it was made of."""

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
from magicdistill.data_pipeline.ledger.policy import framed
from magicdistill.data_pipeline.media.sandbox import Sandbox
from magicdistill.data_pipeline.rows import Array, ClipRow
from magicdistill.data_pipeline.sources.fetching import Scratch
from magicdistill.data_pipeline.stages.encode import facts_of, frames_of, to_pixels
from magicdistill.models.metrics.fidelity import psnr_db
from magicdistill.models.networks.autoencoder.vae import VideoVae

SAMPLE_SIZE = 8
NUM_CANDIDATES = 1000
"""Rows among which the sample is sought; others may be of another VAE or recipe."""


@dataclass(frozen=True)
class Reconstruction:
    """What the VAE makes of one row of the cache."""

    source_id: str
    psnr_db: float | None = None
    """Against the clip's own pixels; null where they cannot be had any more."""
    failure: str = ""


@dataclass(frozen=True)
class _Origin:
    """What a row was made of."""

    config: DataConfig
    clip: ClipRow
    index: int
    """Of the row among the clip's."""


def reconstruct(
    configs: Sequence[DataConfig], vae_directory: Path, root: AnyPath, size: int = SAMPLE_SIZE
) -> Iterator[Reconstruction]:
    """Decode rows that these configs made with this VAE; the same cache, the same rows.

    Keys are hashes, so the first ones in their order are a fair sample.

    Args:
        configs: the rows' recipes.
        vae_directory: a folder written by `VideoVae.save`.
        root: the folder of ledger and latents.
        size: at most so many rows.

    Raises:
        CacheError: if a row is damaged.
    """
    vae, cache = VideoVae.load(vae_directory), root / "latents"
    vae.to("cuda" if torch.cuda.is_available() else "cpu").enable_tiling()
    entries = read_index(cache).sort_by("key")[:NUM_CANDIDATES].to_pylist()
    by_key = {entry["key"]: entry for entry in entries}
    rows = Ledger(root / "ledger").find({entry["clip_id"] for entry in entries})
    origins = _origins(by_key, rows, configs, vae.fingerprint)
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
            latents = read_row(cache, by_key[key]).latents
            yield Reconstruction(clip.video.source_id, _psnr_db(latents, frames, vae))


def _origins(
    keys: Collection[str],
    rows: Sequence[ClipRow],
    configs: Sequence[DataConfig],
    vae_fingerprint: str,
) -> dict[str, _Origin]:
    """Return the origins of those keys that a config makes of the ledger's rows."""
    found: dict[str, _Origin] = {}
    for config in configs:
        for row in rows:
            clip = row if row.failure else framed(row, config.policy)
            bucket = config.bucket_of(clip.width, clip.height)
            if row.failure or num_resampled(clip, bucket) < bucket.num_frames:
                continue
            for index, facts in enumerate(facts_of(clip, config, vae_fingerprint)):
                if facts.key in keys:
                    found[facts.key] = _Origin(config, clip, index)
    return found


@torch.inference_mode()
def _psnr_db(latents: Float[Tensor, "c f h w"], frames: Array, vae: VideoVae) -> float:
    """Return how close the VAE comes to a clip (f, h, w, 3) from its latents (c, f, h, w)."""
    wanted = to_pixels([frames], vae.mean.device, vae.mean.dtype)
    return psnr_db(vae.decode(latents[None].to(wanted)), wanted).item()
