"""Listings of a real S3 server: how many requests they take, and when they are used again."""

import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from magicdistill.data_pipeline.io import listings, object_stores
from magicdistill.data_pipeline.sources.data_sets.koala import Koala
from magicdistill.data_pipeline.sources.folder import Folder
from magicdistill.data_pipeline.sources.json_lines import JsonLines
from magicdistill.data_pipeline.sources.listing import SourceLister, iter_videos
from magicdistill.data_pipeline.sources.stores import Store

if TYPE_CHECKING:
    from tests.s3_server import Server

NAMES = sorted(
    [f"{c}{i:02d}.mp4" for c in "-_Za" for i in range(12)]
    + [f"part_00{i}/é{j:02d}/x~.mp4" for i in range(2) for j in range(14)]
    + ["part_001/", "w", "\U0001f600.mp4", ".hidden"]
)


@pytest.fixture(scope="module", autouse=True)
def bucket(s3: "Server") -> None:
    store = object_stores.filesystem()
    for name in NAMES:
        store.call_s3("put_object", Bucket="bucket", Key=f"films/{name}", Body=name.encode())
    store.call_s3("put_object", Bucket="bucket", Key="films2/no.mp4", Body=b"1")


def serial(location: str) -> dict[str, str]:
    """Return names and states as fsspec lists them, page by page."""
    store = object_stores.filesystem()
    prefix = f"{location.removeprefix('s3://')}/"
    found = store.find(prefix, detail=True)
    store.invalidate_cache()
    return {
        name.removeprefix(prefix): f"{facts['size']}-{facts['ETag'].strip(chr(34))}"
        for name, facts in found.items()
        if not name.endswith("/")
    }


@pytest.mark.parametrize("keys_per_page", [2, 7, 1000])
def test_side_by_side_the_pages_give_what_they_give_one_by_one(
    keys_per_page: int, s3: "Server", monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = serial("s3://bucket/films")
    monkeypatch.setattr(listings, "KEYS_PER_PAGE", keys_per_page)
    s3.num_lists = s3.most_lists_at_once = 0
    table = listings.list_prefix(object_stores.filesystem(), "s3://bucket/films")
    assert table["name"].to_pylist() == sorted(expected)
    assert table["state"].to_pylist() == [expected[name] for name in sorted(expected)]
    pages = -(-len(NAMES) // keys_per_page)
    assert pages <= s3.num_lists <= 3 * pages
    assert (s3.num_lists == 1) == (keys_per_page == 1000)
    assert s3.most_lists_at_once <= listings.MAX_REQUESTS


def test_prefixes_of_one_manifest_are_listed_side_by_side(s3: "Server", tmp_path: Path) -> None:
    store = object_stores.filesystem()
    uris = [f"s3://bucket/many/{i}/x.mp4" for i in range(12)]
    for uri in uris[1:]:
        store.pipe(uri, b"1")
    line = {"source_id": "s", "dataset": "d", "license": "l"}
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps(line | {"uri": uri}) for uri in uris))
    source = JsonLines(manifests=(str(tmp_path / "m.jsonl"),), mixture="general")
    s3.num_lists, s3.most_lists_at_once, s3.list_s = 0, 0, 0.2
    faults = [(video.uri, video.fault) for video in iter_videos([source], tmp_path)]
    assert faults == [(uri, "" if uri in uris[1:] else "missing file") for uri in uris]
    assert s3.num_lists == 12 and s3.most_lists_at_once > 1


def test_a_listing_of_a_bucket_is_kept_by_its_files_and_its_manifest(
    s3: "Server", tmp_path: Path
) -> None:
    store = object_stores.filesystem()

    def put(name: str, content: str) -> None:
        store.pipe(f"s3://bucket/keyed/{name}", content.encode())

    put("koala.csv", "videoID,timestamp")
    put("films/a.mp4", "1")
    place = Store(path="s3://bucket/keyed/films", holds="videos")
    source = Koala(manifests=("s3://bucket/keyed/koala.csv",), store=place, listing_max_age_h=1e-9)
    keys = [SourceLister([source], tmp_path).key for _ in range(2)]
    assert keys[0] == keys[1] is not None
    for change in (("films/b.mp4", "1"), ("films/a.mp4", "2"), ("koala.csv", "videoID,caption")):
        put(*change)
        keys.append(SourceLister([source], tmp_path).key)
    assert len(set(keys)) == 4


def names_in(clips: Path, **options: float) -> list[str]:
    source = Folder(path="s3://bucket/kept", license="", mixture="general", **options)  # type: ignore[arg-type]
    return [video.source_id.rpartition("/")[2] for video in iter_videos([source], clips)]


def test_a_kept_listing_is_used_until_it_is_too_old_or_damaged(
    s3: "Server", tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = object_stores.filesystem()
    store.pipe("s3://bucket/kept/a.mp4", b"1")
    assert names_in(tmp_path, listing_max_age_h=5) == ["a.mp4"]
    store.pipe("s3://bucket/kept/b.mp4", b"1")
    s3.num_lists = 0
    assert names_in(tmp_path, listing_max_age_h=5) == ["a.mp4"]
    assert s3.num_lists == 0
    assert names_in(tmp_path, listing_max_age_h=0) == ["a.mp4", "b.mp4"]  # and keeps nothing
    assert names_in(tmp_path, listing_max_age_h=5) == ["a.mp4"]

    later = time.time() + 5.1 * 3600
    monkeypatch.setattr(listings.time, "time", lambda: later)
    assert names_in(tmp_path, listing_max_age_h=5) == ["a.mp4", "b.mp4"]

    (kept,) = (tmp_path / "listings").iterdir()
    kept.write_bytes(kept.read_bytes()[:-9])
    with caplog.at_level(logging.WARNING):
        assert names_in(tmp_path, listing_max_age_h=5) == ["a.mp4", "b.mp4"]
    assert f"{kept} is damaged and taken again" in caplog.text
    assert pq.read_table(kept)["name"].to_pylist() == ["a.mp4", "b.mp4"]
