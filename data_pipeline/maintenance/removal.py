"""Take a film down: remove it from ledger, clips and latents, and keep it from coming back."""

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from magicdistill.data_pipeline.config import NullText
from magicdistill.data_pipeline.io.kept_tables import TABLES
from magicdistill.data_pipeline.io.query import ROWS_PER_GROUP, text
from magicdistill.data_pipeline.io.storage import (
    AnyPath,
    list_files,
    local_copy,
    local_folder,
    read_table,
    remove,
    remove_copies,
    write_batches,
    write_parquet,
)
from magicdistill.data_pipeline.latents.cache import (
    COMMIT,
    INDEX_SCHEMA,
    TEXT_INDEX,
    LatentCache,
    committed_rows,
    publish,
    read_index,
    rewrite_shard,
)
from magicdistill.data_pipeline.latents.shard_format import SHARD_INDEX
from magicdistill.data_pipeline.latents.text_shards import (
    TEXT_INDEX_SCHEMA,
    committed_texts,
    read_index_of_texts,
    rewrite_texts,
)
from magicdistill.data_pipeline.ledger.columns import recorded
from magicdistill.data_pipeline.ledger.ledger import Ledger
from magicdistill.data_pipeline.ledger.takedowns import add_tombstone
from magicdistill.data_pipeline.reports.thumbnails import FOLDER
from magicdistill.data_pipeline.rows import ClipRow, clips_from_table


@dataclass(frozen=True)
class Removed:
    """The numbers of things that a takedown removed."""

    num_rows_of_ledger: int
    num_decisions: int
    num_files: int
    """Number of rendered or copied clips, and of thumbnails."""
    num_latents: int
    versions: dict[str, str | None]
    """New name of every version that listed the film, by its old name; None if nothing was left."""


def take_down(root: AnyPath, source_id: str) -> Removed:
    """Remove a film and leave a tombstone; after an interruption, call it again.

    The tombstone keeps the hashes and embeddings of the film's clips: near copies stay out.
    Latents, clips and thumbnails of other films with the same content are removed, too. Nothing
    else may read or write `root` meanwhile.

    Args:
        root: the folder of clips, ledger and latents.
        source_id: the film's name in the ledger: `<data set>/<film>`.
    """
    ledger = Ledger(root / "ledger")
    rows = _rows(ledger, f"source_id = {text(source_id)}")
    found = {row.content_hash for row in rows if row.content_hash}
    # From here on an interrupted call can be repeated: the tombstone has what is removed below.
    contents = add_tombstone(root / "ledger", source_id, found, rows)
    if contents:
        rows += _rows(ledger, f"content_hash IN ({', '.join(map(text, contents))})")
    add_tombstone(root / "ledger", source_id, contents, rows)
    clip_ids = {row.clip_id for row in rows}
    own = (pc.field("source_id") == source_id) | _is_in("clip_id", clip_ids)
    num_latents, versions = _remove_latents(root / "latents", own)
    num_files = _remove_files(local_folder(root), {row.video.path for row in rows}, clip_ids)
    num_decisions = sum(_drop(path, source_id) for path in ledger.decision_files())
    num_rows = sum(_drop(part, source_id) for part in ledger.parts())
    _sweep(root)
    return Removed(num_rows, num_decisions, num_files, num_latents, versions)


def _rows(ledger: Ledger, condition: str) -> list[ClipRow]:
    """Return the ledger's rows that a condition selects, as they were recorded."""
    return clips_from_table(
        ledger.read(
            lambda rows: ledger.database.table(
                f"SELECT {recorded(rows.columns)} FROM ({rows.sql}) WHERE {condition}"
            )
        )
    )


def _is_in(column: str, values: Collection[str]) -> pc.Expression:
    return pc.field(column).isin(pa.array(list(values), pa.string()))


def _drop(path: AnyPath, source_id: str) -> int:
    """Remove a film's rows from a Parquet file and return how many there were."""
    others = pc.field("source_id") != source_id
    with pq.ParquetFile(local_copy(path)) as file:
        sources = file.read(columns=["source_id"])
        num_kept = len(sources.filter(others))
        if 0 < num_kept < len(sources):
            kept = (batch.filter(others) for batch in file.iter_batches(ROWS_PER_GROUP))
            write_batches(kept, file.schema_arrow, path)
    if not num_kept and len(sources):
        remove(path)
    return len(sources) - num_kept


def _remove_files(root: Path, paths: Collection[str], clip_ids: Collection[str]) -> int:
    own = [Path(path) for path in paths if Path(path).is_relative_to(root / "clips")]
    pictures = [
        path
        for path in list_files(root / FOLDER, "*.jpg")
        if path.name.partition("-")[0] in clip_ids
    ]
    there = [path for path in (*own, *pictures) if path.exists()]
    for path in there:
        remove(path)
    return len(there)


def _remove_latents(cache: AnyPath, own: pc.Expression) -> tuple[int, dict[str, str | None]]:
    """Rewrite shards and versions without a film's rows, which `own` selects.

    A file is removed only after no other file names it, and the old versions and shards, by which
    the rows are found, last: an interrupted removal can be repeated.

    Returns:
        Number of rows removed, and the new name of each changed version by its old one.
    """
    versions = {
        marker.parent: read_table(marker.parent / "index.parquet", INDEX_SCHEMA)
        for marker in list_files(cache / "versions", f"*/{COMMIT}")
    }
    rows = read_index(cache)
    listed = pa.concat_tables([INDEX_SCHEMA.empty_table(), *versions.values()])
    keys = set(pa.concat_tables([rows, listed]).filter(own)["key"].to_pylist())
    old = set(rows.filter(_is_in("key", keys))["shard"].to_pylist())
    for shard in old:
        rewrite_shard(cache, shard, keys)
    present = {k: row for k, row in committed_rows(cache, without=old).items() if k not in keys}
    names = {path: _rewrite(path, index, present) for path, index in versions.items()}
    null_keys = {LatentCache(version).null_key for version in versions}
    others = set(listed.filter(~_is_in("key", keys))["text_key"].to_pylist())
    _remove_texts(cache, null_keys | others)
    for version, name in names.items():
        if name != version.name:
            _remove_folder(version)
    for shard in old:
        _remove_shard(cache / "shards", shard)
    return len(keys), {path.name: name for path, name in names.items() if path.name != name}


def _rewrite(
    version: AnyPath, index: pa.Table, present: Mapping[str, Mapping[str, object]]
) -> str | None:
    """Publish the remaining rows of a version and return its name; None if no row is left.

    A version that lists all its rows still keeps its name.
    """
    before = index.to_pylist()
    left = [
        row | {name: present[row["key"]][name] for name in ("shard", "row_group")}
        for row in before
        if row["key"] in present
    ]
    if len(left) == len(before):
        if left != before:
            table = pa.Table.from_pylist(left, schema=INDEX_SCHEMA)
            write_parquet(table, version / "index.parquet")
        return version.name
    cache = LatentCache(version)
    text = cache.text()
    shape = NullText(
        num_tokens=text.tokens.shape[0],
        token_dim=text.tokens.shape[1],
        pooled_dim=text.pooled.shape[0],
    )
    return publish(version.parents[1], left, shape, cache.null_key).name if left else None


def _remove_texts(cache: AnyPath, others: Collection[str]) -> None:
    """Remove all texts except `others` from shards of texts and from the versions' lists of them.

    A key does not say which film its caption belongs to, so every text is removed that no version
    needs. One that was not published yet is embedded again by the next curation.
    """
    texts = read_index_of_texts(cache)
    gone = texts.filter(~_is_in("key", others))
    keys, old = set(gone["key"].to_pylist()), set(gone["shard"].to_pylist())
    for shard in old:
        rewrite_texts(cache, shard, keys)
    present = committed_texts(cache, without=old)
    for path in list_files(cache / "versions", f"*/{TEXT_INDEX}") if old else ():
        listed = read_table(path, TEXT_INDEX_SCHEMA).to_pylist()
        left = [present.get(row["key"], row) for row in listed if row["key"] not in keys]
        write_parquet(pa.Table.from_pylist(left, schema=TEXT_INDEX_SCHEMA), path)
    for shard in old:
        _remove_shard(cache / "texts", shard)


def _remove_shard(folder: AnyPath, name: str) -> None:
    remove(folder / f"{name}{SHARD_INDEX}")
    remove(folder / f"{name}.parquet")


def _remove_folder(version: AnyPath) -> None:
    remove(version / COMMIT)
    for path in list_files(version, "*"):
        remove(path)
    if isinstance(version, Path):
        version.rmdir()


def _sweep(root: AnyPath) -> None:
    """Remove files that interrupted writers and takedowns left, and this machine's copies and
    tables, in which the film is listed."""
    shutil.rmtree(local_folder(root) / TABLES, ignore_errors=True)
    cache = root / "latents"
    for folder in (cache / "shards", cache / "texts"):
        committed = {path.name for path in list_files(folder, f"*{SHARD_INDEX}")}
        for path in list_files(folder, "*.parquet"):
            if path.name not in committed and f"{path.stem}{SHARD_INDEX}" not in committed:
                remove(path)
    versions = {path.parent for path in list_files(cache / "versions", "*/*")}
    committed = {path.parent for path in list_files(cache / "versions", f"*/{COMMIT}")}
    for version in versions - committed:
        _remove_folder(version)
    for path in local_folder(root).rglob(".*.tmp"):
        remove(path)
    for folder in (cache, root / "ledger"):
        remove_copies(folder)
