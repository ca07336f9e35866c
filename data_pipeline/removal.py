"""Take a film down: out of the ledger, the clips and the latents, and for good."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from magicdistill.data_pipeline.cache import (
    COMMIT,
    INDEX_SCHEMA,
    SHARD_INDEX,
    LatentCache,
    committed_rows,
    publish,
    rewrite_shard,
)
from magicdistill.data_pipeline.clips import CLIP_SCHEMA, clips_from_table
from magicdistill.data_pipeline.config import NullText
from magicdistill.data_pipeline.ledger import Ledger
from magicdistill.data_pipeline.storage import (
    AnyPath,
    local_copy,
    local_folder,
    read_table,
    write_parquet,
)
from magicdistill.data_pipeline.takedowns import add_tombstone
from magicdistill.data_pipeline.thumbnails import FOLDER


@dataclass(frozen=True)
class Removed:
    """What a takedown removed."""

    num_rows_of_ledger: int
    num_decisions: int
    num_files: int
    """Rendered or copied clips, and thumbnails."""
    num_latents: int
    versions: dict[str, str | None]
    """New name of every version that listed the film; null where nothing else was in it."""


def take_down(root: AnyPath, source_id: str) -> Removed:
    """Remove a film and leave a tombstone; give the same call again where it was interrupted.

    Latents of other films with the same content go too. Nothing may read or write `root`
    meanwhile.

    Args:
        root: the folder of clips, ledger and latents.
        source_id: the film, as the ledger names it: `<data set>/<film>`.
    """
    ledger = Ledger(root / "ledger")
    parts = [(part, read_table(part, CLIP_SCHEMA)) for part in ledger.parts()]
    rows = [
        row
        for _, table in parts
        for row in clips_from_table(table.filter(pc.field("source_id") == source_id))
    ]
    contents = {row.content_hash for row in rows if row.content_hash}
    add_tombstone(root / "ledger", source_id, contents)  # first: what follows can be repeated
    num_latents, versions = _remove_latents(root / "latents", source_id)
    num_files = _remove_files(
        local_folder(root), {row.path for row in rows}, {row.clip_id for row in rows}
    )
    num_decisions = sum(_drop(path, source_id) for path in ledger.decision_files())
    num_rows = sum(_drop(part, source_id) for part, _ in parts)
    return Removed(num_rows, num_decisions, num_files, num_latents, versions)


def _drop(path: AnyPath, source_id: str) -> int:
    """Remove a film's rows from a Parquet file and return how many there were."""
    table = pq.read_table(local_copy(path))
    kept = table.filter(pc.field("source_id") != source_id)
    if len(kept) == len(table):
        return 0
    if len(kept):
        write_parquet(kept, path)
    else:
        path.unlink()
    return len(table) - len(kept)


def _remove_files(root: Path, paths: Collection[str], clip_ids: Collection[str]) -> int:
    own = [Path(path) for path in paths if Path(path).is_relative_to(root / "clips")]
    pictures = [p for p in (root / FOLDER).glob("*.jpg") if p.name.partition("-")[0] in clip_ids]
    there = [path for path in (*own, *pictures) if path.exists()]
    for path in there:
        path.unlink()
    return len(there)


def _remove_latents(cache: AnyPath, source_id: str) -> tuple[int, dict[str, str | None]]:
    """Rewrite shards and versions without a film; old shards go last, when nobody names them."""
    versions = {
        marker.parent: read_table(marker.parent / "index.parquet", INDEX_SCHEMA)
        for marker in sorted((cache / "versions").glob(f"*/{COMMIT}"))
    }
    rows = committed_rows(cache)
    listed = pa.Table.from_pylist(list(rows.values()), schema=INDEX_SCHEMA)
    every = pa.concat_tables([listed, *versions.values()])
    keys = set(every.filter(pc.field("source_id") == source_id)["key"].to_pylist())
    if not keys:
        return 0, {}
    old = {str(rows[key]["shard"]) for key in keys if key in rows}
    for shard in old:
        rewrite_shard(cache, shard, keys)
    present = {k: row for k, row in committed_rows(cache, without=old).items() if k not in keys}
    names = {path.name: _rewrite(path, index, present) for path, index in versions.items()}
    for shard in old:
        (cache / "shards" / f"{shard}{SHARD_INDEX}").unlink()
        (cache / "shards" / f"{shard}.parquet").unlink(missing_ok=True)
    return len(keys), {before: after for before, after in names.items() if before != after}


def _rewrite(
    version: AnyPath, index: pa.Table, present: dict[str, dict[str, object]]
) -> str | None:
    """Publish what is left of a version; return its name, which is the old one if all is left."""
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
    name = publish(version.parents[1], left, shape, cache.null_key).name if left else None
    (version / COMMIT).unlink()
    for path in version.iterdir():
        path.unlink()
    if isinstance(version, Path):
        version.rmdir()
    return name
