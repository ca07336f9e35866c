"""Stores, local and S3: what is there, and how one file at a time comes here."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import s3fs

from magicdistill.data_pipeline.io import object_stores
from magicdistill.data_pipeline.media.video import VideoError, decode, probe
from magicdistill.data_pipeline.rows import is_temporary
from magicdistill.data_pipeline.sources import fetching
from magicdistill.data_pipeline.sources.data_sets.koala import Koala
from magicdistill.data_pipeline.sources.fetching import Scratch
from magicdistill.data_pipeline.sources.folder import Folder
from magicdistill.data_pipeline.sources.json_lines import JsonLines
from magicdistill.data_pipeline.sources.listing import iter_videos
from magicdistill.data_pipeline.sources.stores import Store

if TYPE_CHECKING:
    from tests.s3_server import Server

ROOT = "s3://bucket/clips"
HEADER = (
    "videoID,url,timestamp,caption,clarity_score,aesthetic_score,motion_score,"
    "video_training_suitability_score"
)
BODY = bytes(range(256)) * 2000


@pytest.fixture(scope="module", autouse=True)
def bucket(s3: "Server") -> None:
    files = object_stores.filesystem()
    files.pipe(f"{ROOT}/-a b#1%.mp4", BODY)
    files.pipe(f"{ROOT}/sub/b.mp4", b"1")
    files.pipe(f"{ROOT}/sub/.hidden", b"1")


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scratch]:
    monkeypatch.setattr(fetching.tempfile, "tempdir", str(tmp_path))
    with Scratch() as scratch:
        yield scratch


def copies(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / fetching.SCRATCH).rglob("*") if path.is_file()]


def test_a_bucket_lists_like_a_folder_and_notices_a_change(tmp_path: Path):
    files = object_stores.filesystem()
    files.pipe(f"{ROOT}/changing.mp4", b"1")
    folder = Folder(path=f"{ROOT}/", license="CC0", mixture="anime", listing_max_age_h=0)
    before = {video.uri: video for video in iter_videos([folder], tmp_path)}
    assert list(before) == [
        f"{ROOT}/{name}" for name in ("-a b#1%.mp4", "changing.mp4", "sub/b.mp4")
    ]
    assert {video.path for video in before.values()} == {""}
    files.pipe(f"{ROOT}/changing.mp4", b"2")
    after = {video.uri: video for video in iter_videos([folder], tmp_path)}
    changed = [uri for uri in after if after[uri].fingerprint != before[uri].fingerprint]
    files.rm(f"{ROOT}/changing.mp4")
    assert changed == [f"{ROOT}/changing.mp4"]
    assert [v.video_id for v in after.values()] == [v.video_id for v in before.values()]


def test_a_manifest_and_its_store_may_both_be_remote(tmp_path: Path):
    rows = "\n".join(
        f"{name},u,\"['00:01', '00:02']\",c,1,1,1,1" for name in ("-a b#1%_1", "gone_2")
    )
    object_stores.filesystem().pipe("s3://bucket/koala.csv", f"\ufeff{HEADER}\n{rows}\n".encode())
    store = Store(path=ROOT, holds="videos")
    videos = list(iter_videos([Koala(manifests=("s3://bucket/koala.csv",), store=store)], tmp_path))
    assert [(video.uri, video.fault) for video in videos] == [
        (f"{ROOT}/-a b#1%.mp4", ""),
        (f"{ROOT}/gone.mp4", "missing file"),
    ]
    lines = f'{{"source_id": "a", "dataset": "d", "uri": "{ROOT}/sub/b.mp4", "license": "l"}}\n'
    object_stores.filesystem().pipe("s3://bucket/clips.jsonl", lines.encode())
    source = JsonLines(manifests=("s3://bucket/clips.jsonl",), mixture="general")
    (video,) = iter_videos([source], tmp_path)
    assert (video.uri, video.fault) == (f"{ROOT}/sub/b.mp4", "")
    with pytest.raises(FileNotFoundError, match=r"s3://bucket/none\.csv does not exist"):
        list(iter_videos([Koala(manifests=("s3://bucket/none.csv",), store=store)], tmp_path))


def test_one_copy_at_a_time_lives_until_it_is_cleared(
    s3: "Server", scratch: Scratch, tmp_path: Path
):
    first = scratch.fetch(f"{ROOT}/-a b#1%.mp4", "")
    assert first.read_bytes() == BODY and first.suffix == ".mp4"
    s3.num_downloads = 0
    assert scratch.fetch(f"{ROOT}/-a b#1%.mp4", "") == first
    assert s3.num_downloads == 0  # clips of one video follow one another in a manifest
    second = scratch.fetch(f"{ROOT}/sub/b.mp4", "")
    assert copies(tmp_path) == [second]
    scratch.clear()
    assert copies(tmp_path) == []


@pytest.mark.parametrize("fault", ["num_slow_downs", "num_broken"])
def test_a_throttled_or_broken_download_is_repeated(fault: str, s3: "Server", scratch: Scratch):
    setattr(s3, fault, 2)
    assert scratch.fetch(f"{ROOT}/-a b#1%.mp4", "").read_bytes() == BODY
    assert getattr(s3, fault) == 0


def test_what_was_listed_and_cannot_be_had_may_come_back(
    s3: "Server", scratch: Scratch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    for gone in (f"{ROOT}/none.mp4", "none.mp4", "file/b.mp4", "x" * 256, "\ud83d.mp4"):
        with pytest.raises(VideoError, match=r"^unreachable: ") as failure:
            scratch.fetch(gone, str(tmp_path / gone))
        assert is_temporary(str(failure.value))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setattr(s3, "num_slow_downs", 1000)
    with pytest.raises(VideoError, match=r"^unreachable: ") as refused:
        scratch.fetch(f"{ROOT}/-a b#1%.mp4", "")
    assert is_temporary(str(refused.value)) and is_temporary(f"encode: VideoError: {refused.value}")
    s3.num_downloads = 0
    with pytest.raises(VideoError, match=r"^unreachable: "):  # the film's next clip does not wait
        scratch.fetch(f"{ROOT}/-a b#1%.mp4", "")
    assert s3.num_downloads == 0
    scratch.clear()
    monkeypatch.setattr(s3, "num_slow_downs", 0)
    assert scratch.fetch(f"{ROOT}/-a b#1%.mp4", "").read_bytes() == BODY


def test_a_copy_that_would_fill_the_disk_is_not_begun(
    s3: "Server", scratch: Scratch, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fetching, "SPARE_BYTES", 1 << 60)
    s3.num_downloads = 0
    with pytest.raises(VideoError, match=r"^unreachable: 512000 bytes do not fit"):
        scratch.fetch(f"{ROOT}/-a b#1%.mp4", "")
    assert s3.num_downloads == 0


def test_copies_of_killed_processes_are_removed(scratch: Scratch, tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    here = socket.gethostname()
    alive = {f"{here}-{os.getppid()}", f"elsewhere-{process.pid}"}
    for name in (*alive, f"{here}-{process.pid}"):
        folder = tmp_path / fetching.SCRATCH / name
        folder.mkdir(parents=True)
        (folder / "left.mp4").touch()
    scratch.fetch(f"{ROOT}/sub/b.mp4", "")
    owners = {path.parent.name for path in copies(tmp_path)}
    assert owners == {*alive, f"{here}-{os.getpid()}"}
    assert str(os.getuid()) in fetching.SCRATCH  # nobody can write into another user's folder


def test_a_scratch_folder_that_cannot_be_made_may_pass(scratch: Scratch, tmp_path: Path):
    (tmp_path / fetching.SCRATCH).touch()
    with pytest.raises(VideoError, match=r"^unreachable: "):
        scratch.fetch(f"{ROOT}/sub/b.mp4", "")


def write_pictures(folder: Path, frames: np.ndarray) -> None:
    import cv2

    folder.mkdir()
    for index, frame in enumerate(frames):
        assert cv2.imwrite(str(folder / f"{index:08d}.png"), frame[..., ::-1])


def test_a_folder_of_pictures_is_packed_without_loss(scratch: Scratch, tmp_path: Path):
    frames = np.random.default_rng(0).integers(0, 255, (7, 48, 64, 3), dtype=np.uint8)
    write_pictures(tmp_path / "Clip+a", frames)
    uri = f"{(tmp_path / 'Clip+a').as_uri()}#fps=25.0"
    path = scratch.fetch(uri, str(tmp_path / "Clip+a"))
    header = probe(path)
    assert (header.width, header.height, header.fps) == (64, 48, 25.0)
    assert np.array_equal(np.stack(list(decode(path))), frames)
    assert np.array_equal(np.stack(list(decode(path, 3, 5))), frames[3:5])
    content = path.read_bytes()
    scratch.clear()
    assert scratch.fetch(uri, str(tmp_path / "Clip+a")).read_bytes() == content


def test_a_folder_without_pictures_or_with_odd_ones_is_refused(scratch: Scratch, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match="no PNG"):
        scratch.fetch(f"{(tmp_path / 'empty').as_uri()}#fps=25", str(tmp_path / "empty"))
    write_pictures(tmp_path / "odd", np.zeros((1, 48, 64, 3), np.uint8))
    uri, odd = f"{(tmp_path / 'odd').as_uri()}#fps=25", tmp_path / "odd" / "00000001.png"
    with pytest.raises(VideoError, match="unreachable"):
        scratch.fetch(uri.replace("25", "0.0001"), str(odd.parent))
    odd.mkdir()
    with pytest.raises(VideoError, match="unreachable"):
        scratch.fetch(uri, str(odd.parent))
    odd.rmdir()
    odd.symlink_to("nowhere")
    with pytest.raises(VideoError, match="unreachable"):
        scratch.fetch(uri, str(odd.parent))
    odd.unlink()
    odd.write_text("no picture")
    odd = odd.rename(os.fsdecode(os.fsencode(odd.parent) + b"/1\xff.png"))
    with pytest.raises(VideoError, match="corrupt") as failure:
        scratch.fetch(uri, str(odd.parent))
    assert str(failure.value).encode()  # can be stored
