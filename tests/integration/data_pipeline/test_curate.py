"""Curation from files to a latent cache on a real local Ray, with a small untrained VAE."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange

from magicdistill.data_pipeline.config import (
    Bucket,
    DataConfig,
    Decoder,
    Encoding,
    Measures,
    Policy,
    Prompts,
)
from magicdistill.data_pipeline.latents.cache import LatentCache
from magicdistill.data_pipeline.latents.windows import read_windows
from magicdistill.data_pipeline.media.video import write_mp4
from magicdistill.data_pipeline.pipeline import CurationResult, curate
from magicdistill.data_pipeline.sources.folder import Folder
from magicdistill.data_pipeline.sources.package_clips import PackageClips
from magicdistill.data_pipeline.sources.portrait_clips import PortraitWorld
from magicdistill.data_pipeline.sources.portrait_world.world import render_clip
from magicdistill.models.networks.autoencoder.vae import VideoVae
from magicdistill.platform.cluster.ray_cluster import ray_cluster
from magicdistill.platform.config.sections import ClusterConfig
from tests.tiny_encoders import tiny_encoder

NUM_PORTRAITS = 5


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with ray_cluster(ClusterConfig(logical_cpus=4, dashboard=False)):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one good clip and one of each kind of trouble."""
    folder = tmp_path_factory.mktemp("clips")
    good = render_clip(100)
    write_mp4(folder / "good.mp4", good, 24)
    write_mp4(folder / "cut.mp4", np.concatenate([good[:30], render_clip(101)[:30]]), 24)
    write_mp4(folder / "short.mp4", good[:10], 24)
    write_mp4(folder / "small.mp4", render_clip(100, size=32), 24)
    write_mp4(folder / "still.mp4", np.repeat(good[:1], 51, axis=0), 24)
    data = (folder / "good.mp4").read_bytes()
    (folder / "same.mp4").write_bytes(data)
    (folder / "damaged.mp4").write_bytes(data[: len(data) * 2 // 3])
    (folder / "text.mp4").write_text("this is no video")
    (folder / "empty.mp4").touch()
    (folder / "good.mp4.part").write_bytes(data)
    (folder / "gone.mp4").symlink_to(folder / "nowhere.mp4")
    return folder


def make_config(folder: Path, **changes: object) -> DataConfig:
    return DataConfig(
        sources=(
            PortraitWorld(num_clips=NUM_PORTRAITS),
            Folder(path=str(folder), license="CC0", mixture="portrait"),
        ),
        windows_per_clip=2,
        measures=Measures(motion_short_side=64, motion_fps=8.0),
        policy=Policy(min_short_side=64, min_long_side=64, min_motion_px=0.05, max_motion_px=9.0),
        encoding=Encoding(stored_dtype="float32", rows_per_shard=8),
        videos_per_block=4,
        num_actors=1,
    ).model_copy(update=changes)


def silent(stage: str, done: int, total: int) -> None:
    """Take progress reports."""


@pytest.fixture(scope="module")
def curated(
    cluster: None, vae: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[CurationResult, Path]:
    root = tmp_path_factory.mktemp("root")
    return curate(make_config(folder, num_actors=2), vae, root, silent), root


@pytest.fixture
def own_root(curated: tuple[CurationResult, Path], tmp_path: Path) -> Path:
    """A copy of what `curated` left, for a test that changes it."""
    return shutil.copytree(curated[1], tmp_path / "root")


def state_of(root: Path) -> dict[Path, int]:
    """Return when each file of scores, clips and latents was written."""
    patterns = ("ledger/scores/*", "clips/*/*", "latents/**/*")
    return {p: p.stat().st_mtime_ns for pattern in patterns for p in root.glob(pattern)}


def files_of(root: Path) -> dict[Path, int]:
    """Return the same of the files alone, without their folders."""
    return {path: written for path, written in state_of(root).items() if path.is_file()}


def test_every_file_is_accounted_for_with_its_reason(curated: tuple[CurationResult, Path]):
    result, _ = curated
    reasons = {
        Path(decision.clip.video.path).name: (decision.status, decision.reasons)
        for decision in (*result.rejected, *result.failed)
    }
    expected = {
        "cut.mp4": ("rejected", "shot cut"),
        "short.mp4": ("rejected", "frames: 10"),
        "small.mp4": ("rejected", "resolution"),
        "still.mp4": ("rejected", "motion: 0.0"),
        "damaged.mp4": ("rejected", "damaged"),
        "same.mp4": ("rejected", "duplicate: of folder/"),
        "text.mp4": ("failed", "corrupt"),
        "empty.mp4": ("failed", "empty file"),
        "good.mp4.part": ("failed", "unexpected file name"),
        "gone.mp4": ("failed", "missing file"),
    }
    assert reasons.keys() == expected.keys()
    for name, (status, reason) in expected.items():
        assert reasons[name][0] == status, reasons[name]
        assert any(given.startswith(reason) for given in reasons[name][1]), reasons[name]
    assert result.counts == {"accepted": 6, "rejected": 6, "failed": 4, "rows": 24}


def test_the_cache_holds_what_a_fresh_encoding_gives(
    curated: tuple[CurationResult, Path], vae: Path
):
    result, _ = curated
    cache, model = LatentCache(result.cache_path), VideoVae.load(vae)
    assert len(cache) == result.num_rows == 24
    windows = np.concatenate(list(read_windows(result.clips, result.config.bucket, 2)))
    for position in (0, 1, 7, 23):
        pixels = torch.from_numpy(windows[position // 2])
        pixels = pixels.flip(2) if position % 2 else pixels
        with torch.inference_mode():
            fresh = model.encode(rearrange(pixels / 127.5 - 1, "f h w c -> 1 c f h w"))[0]
        row = cache.read(position)
        assert row.facts.flipped == bool(position % 2)
        assert row.facts.clip_id == result.clips[position // 4].clip_id
        torch.testing.assert_close(row.latents, fresh, atol=1e-4, rtol=1e-4)


def test_a_second_run_decodes_and_encodes_nothing(
    curated: tuple[CurationResult, Path], own_root: Path, vae: Path, folder: Path
):
    result, _ = curated
    for path in own_root.glob("clips/*/*.mp4"):
        path.unlink()  # whoever decoded would have to render them again
    before = state_of(own_root)
    again = curate(make_config(folder), vae, own_root, silent)
    assert (again.version, again.counts) == (result.version, result.counts)
    assert state_of(own_root) == before


def test_a_stricter_policy_only_decides_again(
    curated: tuple[CurationResult, Path], own_root: Path, vae: Path, folder: Path
):
    result, _ = curated
    before = state_of(own_root)
    median_px = sorted(clip.motion_px or 0 for clip in result.clips)[3]
    policy = result.config.policy.model_copy(update={"min_motion_px": median_px})
    stricter = curate(make_config(folder, policy=policy), vae, own_root, silent)
    assert stricter.counts["accepted"] == 3
    assert stricter.version != result.version
    written = state_of(own_root).keys() - before.keys()
    assert all("versions" in path.parts for path in written)
    kept = {decision.clip.clip_id for decision in stricter.decisions if not decision.reasons}
    cache = LatentCache(stricter.cache_path)
    assert {cache.read(i).facts.clip_id for i in range(len(cache))} == kept


@pytest.mark.long
@pytest.mark.parametrize("stage", ["score", "encode"])
def test_an_interrupted_run_goes_on_where_it_was(
    stage: str, curated: tuple[CurationResult, Path], vae: Path, folder: Path, tmp_path: Path
):
    def interrupt(name: str, done: int, total: int) -> None:
        if name == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        curate(make_config(folder), vae, tmp_path, interrupt)
    committed = {
        path: written
        for path, written in state_of(tmp_path).items()
        if path.suffix == ".parquet" and "versions" not in path.parts
    }
    assert committed
    resumed = curate(make_config(folder), vae, tmp_path, silent)
    assert resumed.counts == curated[0].counts, resumed.failed
    assert resumed.version == curated[0].version
    after = state_of(tmp_path)
    assert all(after[path] == written for path, written in committed.items())


def test_a_decoder_that_hangs_fails_its_files_and_not_the_run(
    cluster: None, vae: Path, folder: Path, tmp_path: Path
):
    config = make_config(folder, decoder=Decoder(timeout_s=0.001, num_attempts=1))
    with pytest.raises(ValueError, match=r"no clip was accepted.*timed out after 0.001 s"):
        curate(config, vae, tmp_path, silent)
    assert list((tmp_path / "ledger" / "decisions").glob("*.parquet"))


def test_a_clip_that_vanishes_before_encoding_is_a_failed_row(
    cluster: None, vae: Path, folder: Path, tmp_path: Path
):
    copy = tmp_path / "clips"
    copy.mkdir()
    for name in ("good.mp4", "cut.mp4"):
        (copy / name).write_bytes((folder / name).read_bytes())
    write_mp4(copy / "other.mp4", render_clip(103), 24)
    config = make_config(copy)

    def remove(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("score", total):
            (copy / "other.mp4").unlink()

    result = curate(config, vae, tmp_path / "root", remove)
    (failure,) = result.failed
    assert failure.clip.video.source_id == "folder/clips/other.mp4"
    assert failure.reasons == ("encode: VideoError: unreachable: missing file",)
    assert result.counts["accepted"] == NUM_PORTRAITS + 1


def test_clips_of_two_shapes_go_to_their_buckets_and_stay_there(
    cluster: None, vae: Path, tmp_path: Path
):
    films = [render_clip(seed, size=128) for seed in range(4)]
    (tmp_path / "clips").mkdir()
    for number, frames in enumerate(films):
        shape = frames[:, :, :64] if number % 2 else frames[:, 20:84]
        write_mp4(tmp_path / "clips" / f"{number}.mp4", shape, 24)
    folder = Folder(path=str(tmp_path / "clips"), license="CC0", mixture="portrait")
    wide, tall = Bucket(height=32), Bucket(width=32, num_frames=33)
    config = make_config(
        tmp_path,
        sources=(folder,),
        bucket=wide,
        other_buckets=(tall,),
        encoding=Encoding(stored_dtype="float32", batch_size=3),
    )
    result = curate(config, vae, tmp_path / "root", silent)
    assert result.buckets == {str(wide): 2, str(tall): 2}
    cache = LatentCache(result.cache_path)
    found = [cache.read(position) for position in range(len(cache))]
    shapes = {row.facts.bucket: tuple(row.latents.shape) for row in found}
    assert shapes == {str(wide): (16, 5, 4, 8), str(tall): (16, 9, 8, 4)}
    assert [row.facts.bucket for row in found] == 2 * ([str(wide)] * 4 + [str(tall)] * 4)
    before = state_of(tmp_path / "root")
    assert curate(config, vae, tmp_path / "root", silent).version == result.version
    assert state_of(tmp_path / "root") == before


def test_first_frames_are_embedded_once_beside_latents_that_are_kept(
    curated: tuple[CurationResult, Path],
    own_root: Path,
    vae: Path,
    folder: Path,
    tmp_path: Path,
):
    tiny_encoder(64, sees_images=True).save(tmp_path / "encoders")
    prompts = Prompts(
        encoder=str(tmp_path / "encoders"),
        num_tokens=8,
        image_token_stride=2,
        stored_dtype="float32",
    )
    config, before = make_config(folder, prompts=prompts), files_of(own_root)
    result = curate(config, vae, own_root, silent)
    assert result.counts == curated[0].counts and result.version != curated[0].version
    after = files_of(own_root)
    assert before.items() <= after.items()
    written = {path.parent.name for path in after.keys() - before.keys()}
    assert written == {"texts", result.version}, "no latents are encoded again"
    cache = LatentCache(result.cache_path)
    texts = [cache.text(cache.read(position).text_key) for position in range(len(cache))]
    seen = [text.image_tokens for text in texts if text.null is not None]
    different = {tokens.numpy().tobytes() for tokens in seen if tokens is not None}
    assert len(seen) == len(cache) and len(different) > len(cache) / 2
    assert curate(config, vae, own_root, silent).version == result.version
    assert files_of(own_root) == after
    again = curate(make_config(folder), vae, own_root, silent)
    assert again.version == curated[0].version


def test_real_films_are_split_into_shots(cluster: None, vae: Path, tmp_path: Path):
    config = make_config(tmp_path, sources=(PackageClips(),), flip=False)
    result = curate(config, vae, tmp_path, silent)
    shots = [c for c in result.clips if c.video.source_id == "package-clips/bikes"]
    assert [clip.start for clip in shots] == pytest.approx([0, 34, 80, 141, 191], abs=1)
    assert all(clip.num_cuts == 0 for clip in result.clips)
    assert {clip.video.mixture for clip in result.clips} == {"portrait", "general", "anime"}
    assert len(LatentCache(result.cache_path)) == result.num_rows == 2 * len(result.clips)
