"""Takedowns and verification on a real ledger and cache, without Ray."""

import errno
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pyarrow as pa
import pytest
import torch

from magicdistill.data_pipeline.config import NullText
from magicdistill.data_pipeline.io.kept_tables import TABLES
from magicdistill.data_pipeline.io.storage import AnyPath, list_files, local_folder, place, remove
from magicdistill.data_pipeline.latents.cache import (
    LatentCache,
    LatentRow,
    RowFacts,
    committed_rows,
    publish,
    write_shard,
)
from magicdistill.data_pipeline.latents.latent_statistics import ChannelStatistics
from magicdistill.data_pipeline.latents.shard_format import CacheError
from magicdistill.data_pipeline.latents.text_shards import TextRow, committed_texts, write_texts
from magicdistill.data_pipeline.ledger.ledger import DECISION_SCHEMA, Ledger
from magicdistill.data_pipeline.ledger.takedowns import Takedowns
from magicdistill.data_pipeline.maintenance.removal import take_down
from magicdistill.data_pipeline.maintenance.verification import drop, verify
from magicdistill.data_pipeline.rows import ClipRow, Video, failed

if TYPE_CHECKING:
    from tests.s3_server import Server

FILM, OTHER, COPY = "hdtf/-film", "hdtf/other", "koala/copy"
TEXT = NullText(num_tokens=2, token_dim=3, pooled_dim=4)


def make_clip(clip_id: str, source_id: str, path: str = "") -> ClipRow:
    video = Video(
        f"v{clip_id}", source_id, f"file:///{clip_id}", path, "1-1", "l", "portrait", False
    )
    return replace(failed(video, "m", ""), clip_id=clip_id, content_hash=f"hash {source_id}")


def make_row(clip: ClipRow, seed: int) -> LatentRow:
    facts = RowFacts(
        f"k{clip.clip_id}",
        clip.clip_id,
        clip.video.source_id,
        "l",
        "portrait",
        "17x64x64@24",
        0,
        False,
    )
    latents = torch.randn(16, 5, 8, 8, generator=torch.Generator().manual_seed(seed))
    return LatentRow(facts, latents)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two films, mixed in ledger and shards; one version has both, one only the second."""
    rendered = tmp_path / "clips" / "a.mp4"
    rendered.parent.mkdir()
    rendered.touch()
    (tmp_path / "thumbnails").mkdir()
    (tmp_path / "thumbnails" / "a-1.jpg").touch()
    clips = [
        make_clip("a", FILM, str(rendered)),
        make_clip("b", OTHER),
        make_clip("c", OTHER),
        make_clip("d", FILM),
    ]
    ledger, cache = Ledger(tmp_path / "ledger"), tmp_path / "latents"
    ledger.append(clips[:2])
    ledger.append(clips[2:3])
    ledger.append(clips[3:])
    decisions = [
        {"clip_id": c.clip_id, "source_id": c.video.source_id, "status": "accepted", "reasons": []}
        for c in clips
    ]
    batch = pa.RecordBatch.from_pylist(decisions, schema=DECISION_SCHEMA)
    ledger.write_decisions("all", iter([batch]))
    (tmp_path / TABLES / "listing").mkdir(parents=True)
    (tmp_path / TABLES / "listing" / "rows").write_text(FILM)
    rows = [make_row(clip, seed) for seed, clip in enumerate(clips)]
    write_shard(cache, rows[:2])
    write_shard(cache, rows[2:3])
    write_shard(cache, rows[3:])
    present = committed_rows(cache)
    publish(cache, list(present.values()), TEXT)
    publish(cache, [present["kb"], present["kc"]], TEXT)
    return tmp_path


def silent(stage: str, done: int, total: int) -> None:
    """Take progress reports."""


@pytest.fixture
def bucket(s3: "Server", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AnyPath]:
    """The film and another one in a bucket; requests are not repeated."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    root = place(f"s3://bucket/{uuid4().hex}")
    clips = [make_clip("a", FILM), make_clip("b", OTHER)]
    Ledger(root / "ledger").append(clips)
    write_shard(root / "latents", [make_row(clip, seed) for seed, clip in enumerate(clips)])
    publish(root / "latents", list(committed_rows(root / "latents").values()), TEXT)
    yield root
    s3.faulty_part, s3.num_slow_downs = "", 0


def versions(root: Path) -> dict[str, LatentCache]:
    folders = sorted((root / "latents" / "versions").iterdir())
    return {folder.name: LatentCache(folder) for folder in folders}


def test_a_takedown_removes_a_film_and_nothing_else(root: Path):
    with_both = next(name for name, cache in versions(root).items() if len(cache) == 4)
    only_other = next(name for name, cache in versions(root).items() if len(cache) == 2)
    removed = take_down(root, FILM)
    assert (removed.num_rows_of_ledger, removed.num_decisions) == (2, 2)
    assert (removed.num_latents, removed.num_files) == (2, 2)
    assert removed.versions.keys() == {with_both}

    assert set(committed_rows(root / "latents")) == {"kb", "kc"}
    assert not any(
        p.is_file() for folder in ("clips", "thumbnails") for p in (root / folder).iterdir()
    )
    found = versions(root)
    assert found.keys() == {only_other, removed.versions[with_both]}
    expected = make_row(make_clip("b", OTHER), 1).latents
    for cache in found.values():
        rows = {cache.read(i).facts.key: cache.read(i) for i in range(len(cache))}
        assert rows.keys() == {"kb", "kc"}
        assert torch.equal(rows["kb"].latents, expected)
        assert cache.text().tokens.shape == (2, 3)
    everything = [p.read_bytes() for p in root.rglob("*") if p.is_file() and p.suffix != ".json"]
    assert not any(FILM.encode() in data for data in everything)
    assert not list(verify(root, silent))


@pytest.mark.parametrize("num_left", [0, 2])
def test_a_takedown_reaches_merged_parts_and_what_a_killed_merge_left(
    num_left: int, root: Path, monkeypatch: pytest.MonkeyPatch
):
    ledger = Ledger(root / "ledger")
    left = {part: part.read_bytes() for part in ledger.parts()[:num_left]}
    monkeypatch.setattr("magicdistill.data_pipeline.ledger.ledger.MAX_SMALL_PARTS", 0)
    assert ledger.compact() == 3
    for part, content in left.items():
        part.write_bytes(content)
    assert take_down(root, FILM).num_rows_of_ledger >= 2
    assert not any(FILM.encode() in data for data in contents(root))
    assert {clip.clip_id for clip in ledger.find("abcd")} == {"b", "c"}
    assert not list(verify(root, silent))


def test_a_film_that_was_taken_down_stays_away_under_any_name(root: Path):
    take_down(root, FILM)
    assert take_down(root, FILM).num_rows_of_ledger == 0
    takedowns = Takedowns.load(root / "ledger")
    again = Video("v", FILM, "u", "p", "2-2", "l", "portrait", False, caption="a secret")
    other = replace(again, source_id=OTHER)
    (marked, kept) = takedowns.mark([again, other])
    assert marked.fault.startswith("takedown: on 20") and not marked.caption
    assert kept == other
    assert takedowns.of_content(f"hash {FILM}") == f"takedown: same content as {FILM}"
    assert takedowns.of_content(f"hash {OTHER}") == takedowns.of_content("") == ""


def contents(root: Path) -> list[bytes]:
    return [p.read_bytes() for p in root.rglob("*") if p.is_file() and p.suffix != ".json"]


def test_a_row_goes_from_every_shard_that_holds_it(root: Path):
    film = make_clip("a", FILM)
    write_shard(root / "latents", [make_row(film, 0)])
    write_shard(root / "latents", [make_row(film, 0), make_row(make_clip("c", OTHER), 2)])
    take_down(root, FILM)
    assert set(committed_rows(root / "latents")) == {"kb", "kc"}
    assert not any(FILM.encode() in data for data in contents(root))
    assert not list(verify(root, silent))


def test_the_same_content_under_another_name_goes_too_even_where_it_was_found_later(root: Path):
    def add(clip: ClipRow) -> None:
        Ledger(root / "ledger").append([clip])
        write_shard(root / "latents", [make_row(clip, 7)])
        (root / "thumbnails" / f"{clip.clip_id}-1.jpg").touch()

    for name in ("e", "f"):
        add(replace(make_clip(name, COPY), content_hash=f"hash {FILM}"))
        take_down(root, FILM)
        assert set(committed_rows(root / "latents")) == {"kb", "kc"}
        assert not list((root / "thumbnails").iterdir())


def test_a_takedown_clears_what_an_interrupted_one_left(root: Path):
    cache = root / "latents"
    for known in (FILM, "hdtf/nobody"):
        left = [
            cache / "shards" / "lost.parquet",
            cache / "texts" / "lost.parquet",
            cache / "shards" / ".new.parquet.1.tmp",
            cache / "versions" / "uncommitted" / "index.parquet",
            root / "ledger" / "scores" / ".part.parquet.1.tmp",
        ]
        for path in left:
            path.parent.mkdir(exist_ok=True)
            path.write_text(FILM)
        take_down(root, known)
        assert not any(path.exists() for path in left)
        assert not list(verify(root, silent))


def with_prompts(root: Path) -> AnyPath:
    """Publish rows of both films with prompts of their own, and one in common."""
    texts = {
        name: TextRow(torch.full((2, 3), at + 1.0), torch.ones(2, dtype=torch.bool), torch.ones(4))
        for at, name in enumerate(("null", "film's", "other's", "common"))
    }
    cache = root / "latents"
    write_texts(cache, {key: text for key, text in texts.items() if key != "null"})
    present = committed_rows(cache)
    rows = [("ka", "film's"), ("kb", "other's"), ("kc", "common"), ("kd", "common")]
    return publish(cache, [present[key] | {"text_key": text} for key, text in rows], TEXT)


def test_a_prompt_that_nothing_else_has_goes_with_its_film(root: Path):
    before = with_prompts(root)
    removed = take_down(root, FILM)
    assert committed_texts(root / "latents").keys() == {"other's", "common"}
    assert not any(b"film's" in data for data in contents(root))
    after = removed.versions[before.name]
    assert after is not None
    cache = LatentCache(before.with_name(after))
    assert torch.equal(cache.text("other's").tokens, torch.full((2, 3), 3.0))
    assert torch.equal(cache.text("common").tokens, torch.full((2, 3), 4.0))
    assert not list(verify(root, silent))


@pytest.mark.parametrize("film", [FILM, "hdtf/never encoded"])
def test_prompts_that_no_version_lists_go_with_any_film(film: str, root: Path):
    with_prompts(root)
    cache = root / "latents"
    text = TextRow(torch.full((2, 3), 9.0), torch.ones(2, dtype=torch.bool), torch.ones(4))
    write_texts(cache, {"null prompt": text, "an earlier caption's": text})
    write_texts(cache, {"unpublished": text, "common": text})
    present = committed_rows(cache)
    publish(cache, [present["kb"]], TEXT, "null prompt")
    take_down(root, film)
    left = {"other's", "common", "null prompt"} | ({"film's"} if film != FILM else set())
    assert committed_texts(cache).keys() == left
    for version in versions(root).values():
        assert all(version.text(key).mask.any() for key in version.texts)
    assert not list(verify(root, silent))


def test_a_damaged_text_takes_the_versions_that_list_it_along(root: Path):
    version = with_prompts(root)
    (data,) = (p for p in (root / "latents" / "texts").iterdir() if ".index" not in p.name)
    content = bytearray(data.read_bytes())
    content[content.index(torch.full((2, 3), 2.0).numpy().tobytes())] ^= 1
    data.write_bytes(content)
    found = list(verify(root, silent))
    assert [damage.path.parent.name for damage in found] == ["texts", version.name]
    for damage in found:
        drop(damage)
    assert not list(verify(root, silent))


def test_a_version_that_is_published_meanwhile_is_not_damage(root: Path):
    def publish_more(stage: str, done: int, total: int) -> None:
        if stage == "verify latents" and done == total:
            write_shard(root / "latents", [make_row(make_clip("e", OTHER), 5)])
            publish(root / "latents", list(committed_rows(root / "latents").values()), TEXT)

    assert not list(verify(root, publish_more))


def test_channels_are_described_over_all_rows_of_each_version(root: Path):
    told: list[ChannelStatistics] = []
    assert not list(verify(root, silent, told.append))
    assert sorted(found.num_rows for found in told) == [2, 4]
    for found in told:
        cache = versions(root)[found.version]
        latents = torch.stack([cache.read(i).latents for i in range(len(cache))]).double()
        assert torch.allclose(found.mean, latents.mean((0, 2, 3, 4)))
        assert torch.allclose(found.std, latents.std((0, 2, 3, 4), correction=0))
        assert not found.dead


def test_a_channel_of_one_value_is_told_and_is_no_damage(root: Path):
    rows = [make_row(make_clip(name, OTHER), 7) for name in "ef"]
    for row in rows:
        row.latents[3] = 0.3
    rows[0].latents[5] = 0.3
    write_shard(root / "latents", rows)
    present = committed_rows(root / "latents")
    version = publish(root / "latents", [present["ke"], present["kf"]], TEXT)
    told: list[ChannelStatistics] = []
    assert not list(verify(root, silent, told.append))
    assert {found.version: found.dead for found in told}[version.name] == [3]


@pytest.mark.parametrize("part", ["scores", "shards", "versions"])
def test_a_bucket_that_fails_is_not_damage(part: str, s3: "Server", bucket: AnyPath):
    s3.faulty_part = part
    s3.num_slow_downs = 1000
    with pytest.raises(OSError):
        list(verify(bucket, silent))
    s3.num_slow_downs = 0
    assert not list(verify(bucket, silent))


def test_a_disk_without_room_for_copies_is_not_damage(
    bucket: AnyPath, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("magicdistill.data_pipeline.io.storage.SPARE_BYTES", 1 << 60)
    with pytest.raises(OSError, match="no room") as caught:
        list(verify(bucket, silent))
    assert caught.value.errno == errno.ENOSPC


def test_an_object_that_is_gone_is_damage(bucket: AnyPath):
    (data,) = (p for p in list_files(bucket / "latents" / "shards", "*") if ".index" not in p.name)
    remove(data)
    assert [damage.path.name for damage in verify(bucket, silent)] == [
        f"{data.stem}.index.parquet",
        "COMMIT",
    ]


def test_a_takedown_in_a_bucket_leaves_no_object_and_no_copy_of_the_film(bucket: AnyPath):
    (version,) = list_files(bucket / "latents" / "versions", "*/COMMIT")
    LatentCache(version.parent).read(0)
    removed = take_down(bucket, FILM)
    objects = [
        path.read_bytes()
        for pattern in ("ledger/*/*", "latents/*/*", "latents/*/*/*")
        for path in list_files(bucket, pattern)
    ]
    assert len(objects) > 5
    found = [data for data in objects if FILM.encode() in data]
    assert len(found) == 1 and b"content_hashes" in found[0]
    assert not list(local_folder(bucket).rglob("*.parquet"))
    name = removed.versions[version.parent.name]
    assert name is not None
    assert LatentCache(version.parent.with_name(name)).read(0).facts.source_id == OTHER
    assert not list(verify(bucket, silent))


def flip_latents(root: Path) -> None:
    path = next(
        p for p in sorted((root / "latents" / "shards").iterdir()) if ".index" not in p.name
    )
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 255
    path.write_bytes(bytes(data))


def cut_ledger(root: Path) -> None:
    path = Ledger(root / "ledger").parts()[0]
    path.write_bytes(path.read_bytes()[:-9])


def flip_ledger(root: Path) -> None:
    path = Ledger(root / "ledger").parts()[0]
    data = bytearray(path.read_bytes())
    place = data.index(b"file:///")
    data[place] ^= 1
    path.write_bytes(bytes(data))


def lose_shard(root: Path) -> None:
    next(p for p in (root / "latents" / "shards").iterdir() if ".index" not in p.name).unlink()


@pytest.mark.parametrize("harm", [flip_latents, lose_shard, cut_ledger, flip_ledger])
def test_damage_is_named_and_repaired_by_dropping_it(root: Path, harm: Callable[[Path], None]):
    assert not list(verify(root, silent))
    harm(root)
    found = list(verify(root, silent))
    assert found and all(damage.path.exists() and damage.reason for damage in found)
    in_ledger = harm in (cut_ledger, flip_ledger)
    assert {"ledger" in damage.path.parts for damage in found} == {in_ledger}
    for damage in found:
        drop(damage)
    assert not list(verify(root, silent))


def test_latents_that_are_not_finite_are_damage_though_their_checksum_is_right(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    row = make_row(make_clip("e", OTHER), 9)
    bad = LatentRow(row.facts, torch.full_like(row.latents, torch.nan))
    with pytest.raises(CacheError, match="not finite"):
        write_shard(root / "latents", [bad])
    monkeypatch.setattr(torch, "isfinite", torch.ones_like)
    write_shard(root / "latents", [bad])
    monkeypatch.undo()
    (damage,) = verify(root, silent)
    assert damage.reason == "row 0 is not finite"
