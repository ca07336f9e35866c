"""Read all committed files of ledger and latents, report damaged ones, and drop them on request."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from magicdistill.data_pipeline.io.storage import (
    AnyPath,
    list_files,
    local_copy,
    read_table,
    remove,
)
from magicdistill.data_pipeline.latents.cache import COMMIT, INDEX_SCHEMA, LatentCache, read_shard
from magicdistill.data_pipeline.latents.latent_statistics import ChannelStatistics, moments_of
from magicdistill.data_pipeline.latents.shard_format import SHARD_INDEX, CacheError
from magicdistill.data_pipeline.latents.text_shards import TEXT_INDEX_SCHEMA, read_text
from magicdistill.data_pipeline.ledger.columns import SLICE, is_wide
from magicdistill.data_pipeline.ledger.ledger import Ledger
from magicdistill.data_pipeline.progress import Progress
from magicdistill.data_pipeline.rows import CLIP_SCHEMA

ERRORS = (OSError, pa.ArrowException, CacheError, KeyError, ValueError)
"""Exceptions that readers raise for damaged files."""


@dataclass(frozen=True)
class Damage:
    """A committed file that cannot be trusted."""

    path: AnyPath
    """The file whose presence commits the data: a part of the ledger, a shard index or COMMIT."""
    reason: str


@dataclass
class _Found:
    """The contents of all shards that are not damaged, by shard name."""

    rows: dict[str, list[str]] = field(default_factory=dict)
    """Keys of a shard's latents, in the order of its rows."""
    moments: dict[str, list[Float[Tensor, "3 c"]]] = field(default_factory=dict)
    """`moments_of` the same rows."""
    texts: dict[str, list[str]] = field(default_factory=dict)
    """Keys of a shard's texts, in the order of its rows."""


def verify(
    root: AnyPath,
    progress: Progress,
    tell: Callable[[ChannelStatistics], object] = lambda _: None,
) -> Iterator[Damage]:
    """Read all files of ledger and latents, and yield the damaged ones.

    Checked are checksums, keys, shapes and finiteness of every latent; checksums and keys of every
    text; checksums and columns of the ledger; and that versions list committed rows and texts.

    Args:
        root: the folder, local or in an object store.
        progress: called as files are read.
        tell: called with the statistics of each version that is not damaged.

    Raises:
        OSError: if the disk or the store fails, which says nothing about a file's content.
    """
    cache, found = root / "latents", _Found()
    markers = list_files(
        cache / "versions", f"*/{COMMIT}"
    )  # listed first: a later version may list shards that are not read
    yield from _verify_ledger(Ledger(root / "ledger"), progress)
    yield from _verify_latents(cache, found, progress)
    yield from _verify_texts(cache, found)
    for marker in markers:
        try:
            version = LatentCache(marker.parent)
        except ERRORS as error:
            yield Damage(marker, _fault(error))
            continue
        if reason := _fault_of_version(version, found):
            yield Damage(marker, reason)
        elif len(version):
            entries = version.index.to_pylist()
            moments = [found.moments[entry["shard"]][entry["row_group"]] for entry in entries]
            tell(ChannelStatistics.of(version.version, moments))


def drop(damage: Damage) -> None:
    """Remove a damaged file; the next curation makes its content again."""
    remove(damage.path)


def _verify_ledger(ledger: Ledger, progress: Progress) -> Iterator[Damage]:
    parts = ledger.parts()
    for number, part in enumerate(parts, start=1):
        if reason := _fault_of_part(part):
            yield Damage(part, reason)
        progress("verify ledger", number, len(parts))


def _verify_latents(cache: AnyPath, found: _Found, progress: Progress) -> Iterator[Damage]:
    shards = list_files(cache / "shards", f"*{SHARD_INDEX}")
    shapes: dict[str, torch.Size] = {}
    for number, index in enumerate(shards, start=1):
        try:
            keys, moments = _checked_rows(index, shapes)
            found.rows[_name(index)], found.moments[_name(index)] = keys, moments
        except ERRORS as error:
            yield Damage(index, _fault(error))
        progress("verify latents", number, len(shards))


def _verify_texts(cache: AnyPath, found: _Found) -> Iterator[Damage]:
    for index in list_files(cache / "texts", f"*{SHARD_INDEX}"):
        try:
            found.texts[_name(index)] = _checked_texts(index)
        except ERRORS as error:
            yield Damage(index, _fault(error))


def _fault_of_part(part: AnyPath) -> str:
    try:
        with pq.ParquetFile(local_copy(part), page_checksum_verification=True) as file:
            table = file.read()
        known = {*CLIP_SCHEMA.names, SLICE}
        unknown = [c for c in table.column_names if c not in known and not is_wide(c)]
        if unknown or table["clip_id"].null_count:
            return f"not a part of the ledger: {', '.join(unknown) or 'rows without clip_id'}"
    except FileNotFoundError:
        return ""  # another process has merged it, so it was not damaged
    except ERRORS as error:
        return _fault(error)
    return ""


def _checked_rows(
    index: AnyPath, shapes: dict[str, torch.Size]
) -> tuple[list[str], list[Float[Tensor, "3 c"]]]:
    """Return keys and moments of a shard's rows, in order.

    `shapes` holds the latents' shape by bucket; shapes of new buckets are added.
    """
    entries, moments = read_table(index, INDEX_SCHEMA).to_pylist(), []
    for entry, row in zip(entries, read_shard(_data(index)), strict=True):
        where = f"row {entry['row_group']}"
        if row.facts.key != entry["key"]:
            raise CacheError(f"{where} is not the row that the index names")
        if not torch.isfinite(row.latents).all():
            raise CacheError(f"{where} is not finite")
        expected = shapes.setdefault(row.facts.bucket, row.latents.shape)
        if row.latents.shape != expected:
            raise CacheError(f"{where} is {tuple(row.latents.shape)}, not {tuple(expected)}")
        moments.append(moments_of(row.own))
    return [entry["key"] for entry in entries], moments


def _checked_texts(index: AnyPath) -> list[str]:
    """Return the keys of a shard's texts, in order."""
    entries = read_table(index, TEXT_INDEX_SCHEMA).to_pylist()
    with pq.ParquetFile(local_copy(_data(index))) as file:
        for entry in entries:
            if not read_text(file, entry).is_sound:
                raise CacheError(f"text {entry['key']!r} is not finite")
    return [entry["key"] for entry in entries]


def _fault_of_version(version: LatentCache, found: _Found) -> str:
    for entry in version.index.to_pylist():
        if not _is_in(found.rows, entry):
            return f"lists a row that shard {entry['shard']} does not hold"
    for entry in version.texts.values():
        if not _is_in(found.texts, entry):
            return f"lists a text that shard {entry['shard']} does not hold"
    return ""


def _is_in(keys: Mapping[str, list[str]], entry: Mapping[str, Any]) -> bool:
    found = keys.get(entry["shard"], [])
    return entry["row_group"] < len(found) and found[entry["row_group"]] == entry["key"]


def _name(index: AnyPath) -> str:
    return index.name.removesuffix(SHARD_INDEX)


def _data(index: AnyPath) -> AnyPath:
    """Return the file of a shard by that of its index.

    Raises:
        CacheError: if it is missing, which makes the index a damaged file.
    """
    path = index.with_name(f"{_name(index)}.parquet")
    if not path.exists():
        raise CacheError(f"{path.name} is missing")
    return path


def _fault(error: Exception) -> str:
    """Return the reason why a file is damaged; raise errors of the disk or the store again.

    For malformed files, readers of Parquet raise a plain OSError without an errno.
    """
    if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
        raise error
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
