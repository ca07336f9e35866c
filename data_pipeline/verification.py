"""Read everything that is committed, name what is damaged, and drop it on request."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from magicdistill.data_pipeline.cache import (
    COMMIT,
    INDEX_SCHEMA,
    SHARD_INDEX,
    CacheError,
    LatentCache,
    read_shard,
)
from magicdistill.data_pipeline.clips import CLIP_SCHEMA
from magicdistill.data_pipeline.ledger import Ledger
from magicdistill.data_pipeline.progress import Progress
from magicdistill.data_pipeline.storage import AnyPath, local_copy, read_table

ERRORS = (OSError, pa.ArrowException, CacheError, KeyError, ValueError)
"""What damaged files make their readers raise."""


@dataclass(frozen=True)
class Damage:
    """A committed file that cannot be trusted."""

    path: AnyPath
    """The file whose presence commits it: a part of the ledger, a shard's index or a marker."""
    reason: str


def verify(root: AnyPath, progress: Progress) -> Iterator[Damage]:
    """Yield what is damaged in a folder of ledger and latents, having read all of it.

    Checksums, keys, shapes and finiteness of every latent; checksums and columns of the ledger;
    that versions list committed rows, and their text embeddings.
    """
    ledger, cache = Ledger(root / "ledger"), root / "latents"
    parts = ledger.parts()
    for number, part in enumerate(parts, start=1):
        if reason := _fault_of_part(part):
            yield Damage(part, reason)
        progress("verify ledger", number, len(parts))
    shards = sorted((cache / "shards").glob(f"*{SHARD_INDEX}"))
    keys: dict[str, list[str]] = {}
    shapes: dict[str, torch.Size] = {}
    for number, index in enumerate(shards, start=1):
        name = index.name.removesuffix(SHARD_INDEX)
        try:
            keys[name] = _checked_keys(index, shapes)
        except ERRORS as error:
            yield Damage(index, _spell(error))
        progress("verify latents", number, len(shards))
    for marker in sorted((cache / "versions").glob(f"*/{COMMIT}")):
        if reason := _fault_of_version(marker.parent, keys):
            yield Damage(marker, reason)


def drop(damage: Damage) -> None:
    """Take a damaged file out of use: the next curation makes it anew."""
    damage.path.unlink()


def _fault_of_part(part: AnyPath) -> str:
    try:
        with pq.ParquetFile(local_copy(part), page_checksum_verification=True) as file:
            table = file.read()
        unknown = set(table.column_names) - set(CLIP_SCHEMA.names)
        if unknown or table["clip_id"].null_count:
            return f"not a part of the ledger: {', '.join(unknown) or 'rows without clip_id'}"
    except ERRORS as error:
        return _spell(error)
    return ""


def _checked_keys(index: AnyPath, shapes: dict[str, torch.Size]) -> list[str]:
    """Return the keys of a shard's rows, in order.

    `shapes` has the latents' shape by bucket, and learns the ones that it has not.
    """
    entries = read_table(index, INDEX_SCHEMA).to_pylist()
    data = index.with_name(index.name.removesuffix(SHARD_INDEX) + ".parquet")
    for entry, row in zip(entries, read_shard(data), strict=True):
        where = f"row {entry['row_group']}"
        if row.facts.key != entry["key"]:
            raise CacheError(f"{where} is not the row that the index names")
        if not torch.isfinite(row.latents).all():
            raise CacheError(f"{where} is not finite")
        expected = shapes.setdefault(row.facts.bucket, row.latents.shape)
        if row.latents.shape != expected:
            raise CacheError(f"{where} is {tuple(row.latents.shape)}, not {tuple(expected)}")
    return [entry["key"] for entry in entries]


def _fault_of_version(version: AnyPath, keys: dict[str, list[str]]) -> str:
    try:
        cache = LatentCache(version)
        cache.text()
    except ERRORS as error:
        return _spell(error)
    for row in cache.index.to_pylist():
        found = keys.get(row["shard"], [])
        if row["row_group"] >= len(found) or found[row["row_group"]] != row["key"]:
            return f"lists a row that shard {row['shard']} does not hold"
    return ""


def _spell(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
