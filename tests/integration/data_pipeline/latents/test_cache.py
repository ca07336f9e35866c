import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from magicdistill.data_pipeline.config import Bucket, Encoding, NullText
from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.latents.cache import (
    COMMIT,
    LatentCache,
    LatentRow,
    RowFacts,
    committed_rows,
    publish,
    row_facts,
    write_shard,
)
from magicdistill.data_pipeline.latents.shard_format import CacheError
from magicdistill.data_pipeline.latents.text_shards import TextRow, write_texts
from magicdistill.data_pipeline.latents.windows import Window
from magicdistill.data_pipeline.rows import ClipRow, Video
from magicdistill.data_pipeline.stages.encode import finite_clips

TEXT = NullText(num_tokens=4, token_dim=8, pooled_dim=6)


def make_rows(first: int, count: int, dtype: torch.dtype = torch.bfloat16) -> list[LatentRow]:
    return [
        LatentRow(
            RowFacts(f"k{i}", f"c{i}", "s", "l", "portrait", "17x64x64@24", 0, False),
            torch.randn(16, 5, 8, 8, generator=torch.Generator().manual_seed(i)).to(dtype),
        )
        for i in range(first, first + count)
    ]


@pytest.fixture
def rows(tmp_path: Path) -> list[LatentRow]:
    rows = make_rows(0, 6)
    write_shard(tmp_path, rows[:4])
    write_shard(tmp_path, rows[4:])
    return rows


def publish_all(root: Path) -> AnyPath:
    entries = sorted(committed_rows(root).values(), key=lambda entry: str(entry["key"]))
    return publish(root, entries, TEXT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rows_are_read_bit_for_bit(tmp_path: Path, dtype: torch.dtype):
    rows = make_rows(0, 3, dtype)
    write_shard(tmp_path, rows)
    cache = LatentCache(publish_all(tmp_path))
    for position, row in enumerate(rows):
        read = cache.read(position)
        assert read.facts == row.facts
        assert read.latents.dtype == dtype
        assert torch.equal(read.latents, row.latents)


def test_keys_tell_in_which_formats_latents_were_computed_and_stored():
    clip = ClipRow("c", Video("v", "s", "u", "p", "f", "l", "portrait"), "m", content_hash="h")
    encodings = [
        Encoding(),
        Encoding(compute_dtype="bfloat16"),
        Encoding(stored_dtype="float32"),
    ]
    keys = [row_facts(clip, Window(0, False), Bucket(), "vae", e.dtypes).key for e in encodings]
    assert len(set(keys)) == 3


def test_random_access_is_safe_between_threads(tmp_path: Path, rows: list[LatentRow]):
    cache = LatentCache(publish_all(tmp_path))
    order = [5, 0, 3, 1, 4, 2] * 20
    with ThreadPoolExecutor(4) as pool:
        for position, read in zip(order, pool.map(cache.read, order), strict=True):
            assert torch.equal(read.latents, rows[position].latents)


def test_the_null_prompt_is_a_zero_embedding_of_valid_tokens(tmp_path: Path, rows: list[LatentRow]):
    cache = LatentCache(publish_all(tmp_path))
    text = cache.text(cache.read(0).text_key)
    assert text.tokens.shape == (4, 8) and not text.tokens.any()
    assert text.mask.tolist() == [True, False, False, False]
    assert text.pooled.shape == (6,)
    with pytest.raises(CacheError, match="no text embedding"):
        cache.text("unknown")


def test_the_same_rows_make_the_same_version(tmp_path: Path, rows: list[LatentRow]):
    first = publish_all(tmp_path)
    write_shard(tmp_path, rows[:4])
    assert publish_all(tmp_path) == first
    assert len(list((tmp_path / "shards").glob("*"))) == 4
    subset = list(committed_rows(tmp_path).values())[:2]
    assert publish(tmp_path, subset, TEXT) != first


def test_a_shard_without_its_commit_is_not_trusted(tmp_path: Path, rows: list[LatentRow]):
    version = publish_all(tmp_path)
    marker = next((tmp_path / "shards").glob("*.index.parquet"))
    marker.unlink()
    assert len(committed_rows(tmp_path)) in (2, 4)
    with pytest.raises(CacheError, match="never committed"):
        cache = LatentCache(version)
        [cache.read(position) for position in range(6)]


def test_a_version_without_its_commit_is_not_trusted(tmp_path: Path, rows: list[LatentRow]):
    version = publish_all(tmp_path)
    (version / COMMIT).unlink()
    with pytest.raises(CacheError, match="no committed version"):
        LatentCache(version)


def test_a_flipped_bit_is_noticed(tmp_path: Path, rows: list[LatentRow]):
    cache_path = publish_all(tmp_path)
    for shard in (tmp_path / "shards").glob("*.parquet"):
        data = bytearray(shard.read_bytes())
        blob = rows[1].latents.view(torch.uint8).numpy().tobytes()
        found = data.find(blob)
        if not shard.name.endswith(".index.parquet") and found >= 0:
            data[found + 100] ^= 1
            shard.write_bytes(data)
    cache = LatentCache(cache_path)
    assert torch.equal(cache.read(0).latents, rows[0].latents)
    with pytest.raises(CacheError, match="checksum"):
        cache.read(1)


def test_latents_that_are_not_finite_are_not_written(tmp_path: Path):
    (row,) = make_rows(0, 1)
    row.latents[0, 0, 0, 0] = torch.nan
    with pytest.raises(CacheError, match="not finite"):
        write_shard(tmp_path, [row])
    assert not list(tmp_path.glob("shards/*"))


def test_a_clip_whose_latents_are_not_finite_fails_alone(tmp_path: Path):
    rows = make_rows(0, 3)
    rows[1].latents[0, 0, 0, 0] = torch.inf
    reports = [{"clip_id": row.facts.clip_id, "failure": ""} for row in rows]
    assert finite_clips(rows, reports) == [rows[0], rows[2]]
    assert [report["failure"] for report in reports] == ["", "latents: not finite", ""]


def test_a_row_that_does_not_exist_is_an_index_error(tmp_path: Path, rows: list[LatentRow]):
    cache = LatentCache(publish_all(tmp_path))
    for position in (-1, 6):
        with pytest.raises(IndexError):
            cache.read(position)


def test_more_shards_than_may_stay_open_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = make_rows(0, 8)
    for row in rows:
        write_shard(tmp_path, [row])
    monkeypatch.setattr("magicdistill.data_pipeline.latents.cache.MAX_OPEN_SHARDS", 2)
    cache = LatentCache(publish_all(tmp_path))
    for position in (*range(8), *range(8)):
        assert torch.equal(cache.read(position).latents, rows[position].latents)


def test_a_version_from_before_there_were_prompts_is_read(tmp_path: Path, rows: list[LatentRow]):
    version = publish_all(tmp_path)
    (version / COMMIT).write_text(json.dumps({"num_rows": len(rows)}))
    cache = LatentCache(version)
    assert cache.null_key == "null" and not cache.text().tokens.any()


def test_the_shape_of_the_zero_prompt_names_a_version_only_where_it_is_used(
    tmp_path: Path, rows: list[LatentRow]
):
    mask = torch.ones(2, dtype=torch.bool)
    write_texts(tmp_path, {"empty": TextRow(torch.ones(2, 3), mask, torch.ones(4))})
    entries = list(committed_rows(tmp_path).values())
    other = TEXT.model_copy(update={"num_tokens": 9})
    assert publish(tmp_path, entries, TEXT) != publish(tmp_path, entries, other)
    assert publish(tmp_path, entries, TEXT, "empty") == publish(tmp_path, entries, other, "empty")
