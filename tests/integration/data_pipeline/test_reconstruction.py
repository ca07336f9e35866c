"""Latents that the tiny VAE made are decoded and compared with the films they were made of."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from magicdistill.data_pipeline.config import DataConfig, Encoding
from magicdistill.data_pipeline.io.storage import AnyPath, place
from magicdistill.data_pipeline.ledger.ledger import Ledger
from magicdistill.data_pipeline.maintenance.reconstruction import Reconstruction, reconstruct
from magicdistill.data_pipeline.media.video import write_mp4
from magicdistill.data_pipeline.rows import ClipRow, Video, clips_to_table
from magicdistill.data_pipeline.sources.folder import Folder
from magicdistill.data_pipeline.sources.portrait_world.world import render_clip
from magicdistill.data_pipeline.stages.encode import Encode, EncodeJob
from magicdistill.data_pipeline.stages.score import score_video
from magicdistill.models.networks.autoencoder.vae import VideoVae

if TYPE_CHECKING:
    from tests.s3_server import Server

VAE = Path(__file__).parents[3] / "assets" / "portrait-tiny" / "vae"


def make_config(folder: Path, **changes: object) -> DataConfig:
    source = Folder(path=str(folder), license="CC0", mixture="portrait")
    return DataConfig(sources=(source,), windows_per_clip=2, flip=True, **changes)  # type: ignore[arg-type]


def score(folder: Path, name: str, seed: int, config: DataConfig) -> list[ClipRow]:
    path = folder / f"{name}.mp4"
    write_mp4(path, render_clip(seed), 24)
    video = Video(name, name, path.as_uri(), str(path), "1-1", "CC0", "portrait", False)
    return score_video(video, path, config.measures)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two films, scored and encoded: eight rows."""
    folder = tmp_path_factory.mktemp("data")
    config = make_config(folder)
    clips = [clip for seed, name in enumerate("ab") for clip in score(folder, name, seed, config)]
    Ledger(folder / "ledger").append(clips)
    job = EncodeJob(config, VAE, VideoVae.load(VAE).fingerprint, folder / "latents")
    stage = Encode(job)
    reports = stage(clips_to_table(clips)).to_pylist()
    stage._sandbox.close()
    assert not any(report["failure"] for report in reports)
    return folder


def sample(root: AnyPath, config: DataConfig, size: int = 8) -> list[Reconstruction]:
    return list(reconstruct([config], VAE, root, size))


def test_every_window_and_its_mirror_image_are_compared_with_themselves(root: Path):
    found = sample(root, make_config(root))
    assert sorted(row.source_id for row in found) == ["a"] * 4 + ["b"] * 4
    assert min(row.psnr_db or 0 for row in found) > 27
    assert sample(root, make_config(root), 3) == found[:3]


def test_a_bucket_gives_the_same(
    s3: "Server", root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    bucket = place("s3://bucket/data")
    for file in root.rglob("*.parquet"):
        (bucket / file.relative_to(root).as_posix()).write_bytes(file.read_bytes())
    assert sample(bucket, make_config(root), 2) == sample(root, make_config(root), 2)


def test_rows_that_another_recipe_made_are_left_out(root: Path):
    assert sample(root, make_config(root, encoding=Encoding(stored_dtype="float32"))) == []


def test_a_film_that_is_gone_is_named_and_the_others_are_compared(root: Path):
    found = sample(root, make_config(root))
    film = root / "a.mp4"
    away = film.rename(root / "elsewhere")
    try:
        without = sample(root, make_config(root))
    finally:
        away.rename(film)
    for before, after in zip(found, without, strict=True):
        if before.source_id == "b":
            assert after == before
        else:
            assert after == Reconstruction("a", None, "VideoError: unreachable: missing file")
