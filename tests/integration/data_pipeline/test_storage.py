"""Ledger and latent cache in a bucket: through faults and kills, nothing half-visible or lost."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import boto3
import pytest
import torch

from magicdistill.data_pipeline.config import NullText
from magicdistill.data_pipeline.io.storage import AnyPath, list_files, local_copy, place, remove
from magicdistill.data_pipeline.latents.cache import (
    LatentCache,
    LatentRow,
    RowFacts,
    committed_rows,
    publish,
    write_shard,
)
from magicdistill.data_pipeline.latents.shard_format import CacheError
from magicdistill.data_pipeline.ledger.ledger import Ledger
from magicdistill.data_pipeline.rows import Video, failed
from tests.curation_tables import scored

if TYPE_CHECKING:
    from tests.s3_server import Server

TEXT = NullText(num_tokens=4, token_dim=8, pooled_dim=6)
LARGE = (10, 1, 1024, 1024)
"""40 MiB, which go to the bucket in parts."""
ROW = (16, 4, 128, 128)
"""4 MiB; ten of them are a large shard."""
WRITE_SHARD = """
import sys, torch
from magicdistill.data_pipeline.latents.cache import LatentRow, RowFacts, write_shard
from magicdistill.data_pipeline.io.storage import place
facts = RowFacts("large", "c", "s", "l", "portrait", "17x64x64@24", 0, False)
write_shard(place(sys.argv[1]), [LatentRow(facts, torch.zeros(10, 1, 1024, 1024))])
"""


@pytest.fixture
def root(s3: "Server", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AnyPath]:
    """Return a new prefix of the bucket; local copies lie below the test's folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield place(f"s3://bucket/{uuid4().hex}")
    s3.fault_share, s3.held_part = 0.0, ""


def make_row(name: str, shape: tuple[int, ...] = (16, 5, 8, 8)) -> LatentRow:
    facts = RowFacts(name, f"c{name}", "s", "l", "portrait", "17x64x64@24", 0, False)
    generator = torch.Generator().manual_seed(len(name))
    return LatentRow(facts, torch.randn(shape, generator=generator))


def publish_all(root: AnyPath) -> AnyPath:
    return publish(root, list(committed_rows(root).values()), TEXT)


def test_a_bucket_that_throttles_and_hangs_up_loses_nothing(s3: "Server", root: AnyPath):
    s3.fail_at_random(0.15)
    rows = [make_row(f"k{index}") for index in range(3)]
    for row in rows:
        write_shard(root, [row])
    cache = LatentCache(str(publish_all(root)))
    read = {row.facts: row for row in map(cache.read, range(len(cache)))}
    assert len(read) == 3
    for row in rows:
        assert torch.equal(read[row.facts].latents, row.latents)


def test_the_ledger_of_a_bucket_is_that_of_a_folder(
    s3: "Server", root: AnyPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("magicdistill.data_pipeline.ledger.ledger.MAX_SMALL_PARTS", 1)
    video = Video("v", "source", "uri", "path", "fingerprint", "license", "portrait", False)
    clips = [failed(video, "measures", "no frames")]
    for ledger in (Ledger(root / "ledger"), Ledger(tmp_path / "ledger")):
        assert scored(ledger, [video], "measures") == {}
        ledger.append(clips)
        ledger.append(clips)
        assert scored(ledger, [video], "measures") == {"v": clips}
        ledger.append([failed(video, "others", "no frames")])
        assert (ledger.compact(), len(ledger.parts())) == (2, 1)
        assert scored(ledger, [video], "measures") == {"v": clips}


def test_a_shard_is_copied_once_and_again_when_it_was_replaced(s3: "Server", root: AnyPath):
    write_shard(root, [make_row("a")])
    version = publish_all(root)
    LatentCache(version).read(0)
    num_downloads = s3.num_downloads
    LatentCache(version).read(0)
    assert s3.num_downloads == num_downloads
    (shard,) = (path for path in (root / "shards").iterdir() if ".index" not in path.name)
    shard.write_bytes(b"something else")
    with pytest.raises(Exception, match="Parquet"):
        LatentCache(version).read(0)


def test_of_a_large_shard_only_the_row_that_is_asked_for_is_fetched(s3: "Server", root: AnyPath):
    rows = [make_row("x" * index, ROW) for index in range(1, 11)]
    shard = write_shard(root, rows)
    version = publish_all(root)
    cache = LatentCache(version)
    for position in (7, 2):
        before = s3.num_downloads, s3.num_bytes_sent
        assert torch.equal(cache.read(position).latents, rows[position].latents)
        num_downloads, num_bytes = s3.num_downloads - before[0], s3.num_bytes_sent - before[1]
        assert num_bytes < 1.1 * rows[0].latents.nbytes  # of ten rows
        assert num_downloads <= (3 if position == 7 else 1)  # the footer comes once
    local_copy(root / "shards" / f"{shard}.parquet")
    again = LatentCache(version)
    num_downloads = s3.num_downloads
    assert torch.equal(again.read(3).latents, rows[3].latents)
    assert s3.num_downloads == num_downloads


def test_a_row_that_is_fetched_survives_faults_and_is_never_of_another_object(
    s3: "Server", root: AnyPath
):
    rows = [make_row("x" * index, ROW) for index in range(1, 11)]
    shard = write_shard(root, rows)
    cache = LatentCache(publish_all(root))
    s3.faulty_part, s3.num_slow_downs, s3.num_broken = "shards", 2, 2
    try:
        for position in (7, 2):
            assert torch.equal(cache.read(position).latents, rows[position].latents)
        assert s3.num_slow_downs == s3.num_broken == 0
    finally:
        s3.faulty_part, s3.num_slow_downs, s3.num_broken = "", 0, 0
    (root / "shards" / f"{shard}.parquet").write_bytes(b"something else")
    with pytest.raises(OSError):
        cache.read(3)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("moment", ["partNumber=2", ".index.parquet"])
def test_a_writer_killed_while_it_uploads_leaves_nothing_that_counts(
    moment: str, s3: "Server", root: AnyPath
):
    s3.held_part = moment
    s3.holding.clear()
    s3.released.clear()
    writer = subprocess.Popen([sys.executable, "-c", WRITE_SHARD, str(root)], cwd=Path.cwd())
    try:
        assert s3.holding.wait(280)
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        s3.held_part = ""
        s3.released.set()
    found = boto3.client("s3").list_objects_v2(
        Bucket="bucket", Prefix=str(root).partition("bucket/")[2]
    )
    assert found["KeyCount"] == (0 if moment == "partNumber=2" else 1)
    assert committed_rows(root) == {}
    row = make_row("large", LARGE)
    write_shard(root, [row])
    assert torch.equal(LatentCache(publish_all(root)).read(0).latents, row.latents)


def test_a_version_without_its_commit_is_refused(s3: "Server", root: AnyPath):
    write_shard(root, [make_row("a")])
    version = publish_all(root)
    (version / "COMMIT").unlink()
    with pytest.raises(CacheError, match="no committed version"):
        LatentCache(version)


def test_a_listing_that_fails_is_not_an_empty_folder(s3: "Server"):
    nowhere = place("s3://no-such-bucket/ledger")
    with pytest.raises(FileNotFoundError):
        Ledger(nowhere).parts()
    with pytest.raises(FileNotFoundError):
        committed_rows(nowhere)
    with pytest.raises(FileNotFoundError):
        remove(nowhere / "part.parquet")


def test_a_pattern_finds_the_same_in_a_bucket_and_in_a_folder(
    s3: "Server", root: AnyPath, tmp_path: Path
):
    names = ("v/COMMIT", "v/index.parquet", "v/w/COMMIT", "COMMIT", "u/COMMIT")
    for folder in (root, tmp_path / "folder"):
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")
        found = list_files(folder, "*/COMMIT")
        assert found == [folder / "u/COMMIT", folder / "v/COMMIT"]
        for path in found:
            remove(path)
            remove(path)
        assert list_files(folder, "*/*") == [folder / "v/index.parquet"]
        assert list_files(folder / "none", "*") == []


def test_copies_make_room_for_others_and_come_back(
    s3: "Server", root: AnyPath, monkeypatch: pytest.MonkeyPatch
):
    first, second = (root / f"{name}.parquet" for name in ("first", "second"))
    first.write_text("one")
    second.write_text("two")
    copy = local_copy(first)
    with monkeypatch.context() as patch:
        patch.setattr("magicdistill.data_pipeline.io.storage.SPARE_BYTES", 1 << 60)
        assert local_copy(first) == copy
        with pytest.raises(OSError, match="no room"):
            local_copy(second)
    assert not copy.exists()
    assert local_copy(first).read_text() == "one"
