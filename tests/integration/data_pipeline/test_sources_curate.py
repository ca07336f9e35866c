"""A published format, its videos on S3, through the whole curation on a real local Ray."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np
import pytest
import torch
from einops import rearrange

from magicdistill.data_pipeline.config import DataConfig, Encoding, Measures, Policy
from magicdistill.data_pipeline.io.object_stores import filesystem
from magicdistill.data_pipeline.latents.cache import LatentCache
from magicdistill.data_pipeline.latents.windows import read_windows
from magicdistill.data_pipeline.media.video import write_mp4
from magicdistill.data_pipeline.pipeline import curate
from magicdistill.data_pipeline.sources.data_sets.hdtf import Hdtf
from magicdistill.data_pipeline.sources.fetching import SCRATCH
from magicdistill.data_pipeline.sources.portrait_clips import PortraitWorld
from magicdistill.data_pipeline.sources.portrait_world.world import render_clip
from magicdistill.data_pipeline.sources.stores import Store
from magicdistill.models.networks.autoencoder.vae import VideoVae
from magicdistill.platform.cluster.ray_cluster import ray_cluster
from magicdistill.platform.config.sections import ClusterConfig

if TYPE_CHECKING:
    from tests.s3_server import Server

FILM = f"-talks{uuid4().hex}"  # its copies are told from those of other sessions
TEXTS = {
    "video_url": f"\ufeff{FILM} https://www.youtube.com/watch?v=x\nGone y\nSilent z\n",
    "resolution": f"{FILM}.mp4 128\nGone.mp4 720\n",
    "annotion_time": f"{FILM}.mp4 00:00-00:02 00:02-00:04 00:04-00:06 00:30-00:40\n"
    "Gone.mp4 00:01-00:05\n",
    # Half the published resolution is in the store: boxes are scaled.
    "crop_wh": f"{FILM}_0.mp4 128 128 0 128\n{FILM}_1.mp4 128 128 0 128\n{FILM}_3.mp4 0 9 0 9\n"
    "Gone_0.mp4 0 9 0 9\n",
}


@pytest.fixture(scope="module")
def hdtf(s3: "Server", tmp_path_factory: pytest.TempPathFactory) -> Hdtf:
    """A film of three talking portraits, two seconds each and all in the right half, on S3."""
    folder = tmp_path_factory.mktemp("film")
    faces = np.concatenate([render_clip(seed, num_frames=48) for seed in range(3)])
    noise = np.random.default_rng(0).integers(0, 255, faces.shape, dtype=np.uint8)
    write_mp4(folder / "film.mp4", np.concatenate([noise, faces], axis=2), 24)
    files = filesystem()
    files.put_file(str(folder / "film.mp4"), f"s3://bucket/films/{FILM}.mp4")
    for kind, text in TEXTS.items():
        files.pipe(f"s3://bucket/hdtf/RD_{kind}.txt", text.encode())
    store = Store(path="s3://bucket/films", holds="videos")
    return Hdtf(path="s3://bucket/hdtf/", splits=("RD",), store=store)


@pytest.fixture(scope="module")
def cluster(hdtf: Hdtf) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        with ray_cluster(ClusterConfig(logical_cpus=4, dashboard=False)):
            yield


def make_config(hdtf: Hdtf) -> DataConfig:
    return DataConfig(
        sources=(PortraitWorld(num_clips=1), hdtf),
        windows_per_clip=1,
        flip=False,
        measures=Measures(motion_short_side=64, motion_fps=8.0),
        policy=Policy(min_short_side=64, min_long_side=64, min_motion_px=0.02, max_motion_px=20.0),
        encoding=Encoding(stored_dtype="float32"),
        num_actors=1,
    )


def silent(stage: str, done: int, total: int) -> None:
    """Take progress reports."""


@pytest.mark.long
def test_spans_and_crops_of_a_remote_film_reach_the_cache(
    s3: "Server", cluster: None, hdtf: Hdtf, vae: Path, tmp_path: Path
):
    s3.faulty_part, s3.num_slow_downs = ".mp4", 1_000_000
    first = curate(make_config(hdtf), vae, tmp_path, silent)
    assert first.counts["accepted"] == 1
    unreachable = [d for d in first.failed if d.reasons[0].startswith("unreachable: ")]
    assert {decision.clip.video.entry for decision in unreachable} == {
        f"{FILM}_{k}" for k in (0, 1, 3)
    }

    s3.num_slow_downs = 0
    result = curate(make_config(hdtf), vae, tmp_path, silent)
    assert {d.clip.video.entry: d.reasons for d in (*result.failed, *result.rejected)} == {
        f"{FILM}_2": ("missing crop",),
        f"{FILM}_3": ("bad span: starts at frame 720 of 144",),
        "Gone_0": ("missing file",),
        "Silent": ("missing span",),
    }
    clips = {clip.video.entry: clip for clip in result.clips}
    for index in range(2):
        clip = clips[f"{FILM}_{index}"]
        assert (clip.start, clip.stop) == (48 * index, 48 * index + 48)
        assert (clip.crop, clip.video.source_id, clip.video.license) == (
            (64, 0, 128, 64), f"hdtf/{FILM}", "CC BY 4.0"
        )  # fmt: skip

    cache, model = LatentCache(result.cache_path), VideoVae.load(vae)
    windows = list(read_windows(result.clips, result.config.bucket, 1))
    for position, clip in enumerate(result.clips):
        pixels = torch.from_numpy(windows[position])
        with torch.inference_mode():
            fresh = model.encode(rearrange(pixels / 127.5 - 1, "n f h w c -> n c f h w"))[0]
        row = cache.read(position)
        assert (row.facts.source_id, row.facts.license) == (
            clip.video.source_id,
            clip.video.license,
        )
        torch.testing.assert_close(row.latents, fresh, atol=1e-4, rtol=1e-4)
    face = render_clip(1, num_frames=48)[15 : 15 + 17]
    error = windows[result.clips.index(clips[f"{FILM}_1"])][0].astype(float) - face
    assert np.sqrt((error**2).mean()) < 12  # H.264, chroma at half size

    s3.num_slow_downs = 1_000_000
    again = curate(make_config(hdtf), vae, tmp_path, silent)
    assert (again.version, again.counts) == (result.version, result.counts)
    assert s3.num_slow_downs == 1_000_000  # nobody asked for the film
    assert not list((Path(tempfile.gettempdir()) / SCRATCH).glob(f"*/{FILM}*"))
