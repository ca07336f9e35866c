"""Takedowns and verification on a real ledger and cache, without Ray."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from magicdistill.data_pipeline.cache import (
    CacheError,
    LatentCache,
    LatentRow,
    RowFacts,
    committed_rows,
    publish,
    write_shard,
)
from magicdistill.data_pipeline.clips import ClipRow, Video, failed
from magicdistill.data_pipeline.config import NullText
from magicdistill.data_pipeline.ledger import Ledger
from magicdistill.data_pipeline.policy import Decision
from magicdistill.data_pipeline.removal import take_down
from magicdistill.data_pipeline.takedowns import Takedowns
from magicdistill.data_pipeline.verification import drop, verify

FILM, OTHER = "hdtf/-film", "hdtf/other"


def make_clip(clip_id: str, source_id: str, path: str = "") -> ClipRow:
    video = Video(
        f"v{clip_id}", source_id, f"file:///{clip_id}", path, "1-1", "l", "portrait", False
    )
    return replace(failed(video, "m", ""), clip_id=clip_id, content_hash=f"hash {source_id}")


def make_row(clip: ClipRow, seed: int) -> LatentRow:
    facts = RowFacts(
        f"k{clip.clip_id}", clip.clip_id, clip.source_id, "l", "portrait", "17x64x64@24", 0, False
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
    ledger.write_decisions("all", [Decision(clip, "accepted", ()) for clip in clips])
    rows = [make_row(clip, seed) for seed, clip in enumerate(clips)]
    write_shard(cache, rows[:2])
    write_shard(cache, rows[2:3])
    write_shard(cache, rows[3:])
    present = committed_rows(cache)
    text = NullText(num_tokens=2, token_dim=3, pooled_dim=4)
    publish(cache, list(present.values()), text)
    publish(cache, [present["kb"], present["kc"]], text)
    return tmp_path


def silent(stage: str, done: int, total: int) -> None:
    """Take progress reports."""


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
