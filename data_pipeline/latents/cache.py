"""The latent cache: content-addressed rows in committed Parquet shards, and versions over them.

    <root>/shards/<name>.parquet         latents, uncompressed, one row per row group
    <root>/shards/<name>.index.parquet   the same rows without latents; its presence commits them
    <root>/texts/                        the same for embeddings of prompts, one per row group
    <root>/versions/<version>/           index.parquet, text.parquet (the null prompt),
                                         text_index.parquet where there are others; last, COMMIT

A version lists rows of any committed shards, so a new policy uses the rows that are encoded
already. A row is named by a hash of everything that shapes its latents: the same window encoded
the same way is found again by its key. One row per row group makes a random read one request.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from magicdistill.data_pipeline.config import Bucket, NullText
from magicdistill.data_pipeline.io.storage import (
    AnyPath,
    local_copy,
    open_parquet,
    place,
    read_table,
    read_tables,
    write_parquet,
)
from magicdistill.data_pipeline.io.whole_files import write_text
from magicdistill.data_pipeline.latents.shard_format import (
    BLOB_FIELDS,
    SHARD_INDEX,
    CacheError,
    commit_shard,
    from_blob,
    to_blob,
)
from magicdistill.data_pipeline.latents.text_shards import (
    NULL_TEXT,
    TEXT_INDEX_SCHEMA,
    TEXT_SCHEMA,
    TextRow,
    committed_texts,
    open_text_shard,
    read_text,
    text_records,
    zero_text,
)
from magicdistill.data_pipeline.latents.windows import Window
from magicdistill.data_pipeline.rows import ClipRow, digest

COMMIT = "COMMIT"
TEXT_INDEX = "text_index.parquet"
"""File of a version that lists where its prompts' embeddings are."""
MAX_OPEN_SHARDS = 64


@dataclass(frozen=True)
class RowFacts:
    """The index entry of a row: everything except its latents."""

    key: str
    clip_id: str
    source_id: str
    license: str
    mixture: str
    bucket: str
    window_start: int
    flipped: bool
    text_key: str = NULL_TEXT
    weight: float = 1.0


@dataclass(frozen=True)
class LatentRow:
    """One window of a clip, encoded."""

    facts: RowFacts
    latents: Float[Tensor, "c f h w"] | Float[Tensor, "2 c f h w"]
    """Those of the clip; for a VAE that pads the image prior, followed by those of the prior."""

    @property
    def own(self) -> Float[Tensor, "c f h w"]:
        """The latents of the clip alone."""
        return self.latents if self.latents.ndim == 4 else self.latents[0]

    @property
    def text_key(self) -> str:
        """Key of the row's prompt, for `LatentCache.text`."""
        return self.facts.text_key


_ARROW_TYPES = {str: pa.string(), int: pa.int64(), bool: pa.bool_(), float: pa.float64()}
_FACTS_SCHEMA = pa.schema([(f.name, _ARROW_TYPES[f.type]) for f in fields(RowFacts)])  # type: ignore[index]
_SHARD_SCHEMA = pa.schema([*_FACTS_SCHEMA, *BLOB_FIELDS])
INDEX_SCHEMA = pa.schema([*_FACTS_SCHEMA, ("shard", pa.string()), ("row_group", pa.int64())])


def what_shapes(clip: ClipRow, window: Window, bucket: Bucket) -> tuple[object, ...]:
    """Return everything that shapes the frames of a window."""
    transform = f"frames as shown, by time stamp; centre-crop area {bucket}"
    if clip.crop:
        transform += f" of {clip.crop}"
    if clip.video.time_scale != 1:
        transform += f" at time scale {clip.video.time_scale:g}"
    return clip.content_hash, clip.start, clip.stop, window.start, window.flipped, transform


def row_facts(
    clip: ClipRow, window: Window, bucket: Bucket, vae_fingerprint: str, dtypes: str
) -> RowFacts:
    """Return a window's index entry; its key is a hash of everything that shapes the latents."""
    return RowFacts(
        key=digest(*what_shapes(clip, window, bucket), vae_fingerprint, dtypes),
        clip_id=clip.clip_id,
        source_id=clip.video.source_id,
        license=clip.video.license,
        mixture=clip.video.mixture,
        bucket=str(bucket),
        window_start=window.start,
        flipped=window.flipped,
    )


def write_shard(root: AnyPath, rows: Sequence[LatentRow]) -> str:
    """Write and commit one shard and return its name, a hash of its rows' keys.

    Writing the same rows again replaces the shard by an equal one.

    Raises:
        CacheError: if a latent is not finite; nothing is written then.
    """
    for row in rows:
        if not torch.isfinite(row.latents).all():
            raise CacheError(f"latents of {row.facts.source_id} are not finite")
    records = [vars(row.facts) | to_blob(row.latents) for row in rows]
    table = pa.Table.from_pylist(records, schema=_SHARD_SCHEMA)
    return _commit_shard(root, [vars(row.facts) for row in rows], table)


def _commit_shard(root: AnyPath, facts: Sequence[dict[str, object]], table: pa.Table) -> str:
    return commit_shard(root / "shards", facts, table, rows_per_group=1, index_schema=INDEX_SCHEMA)


def rewrite_shard(root: AnyPath, name: str, without: Collection[str]) -> None:
    """Commit a new shard with the rows of an old one except some keys; the old one stays."""
    with pq.ParquetFile(local_copy(root / "shards" / f"{name}.parquet")) as file:
        facts = file.read(columns=_FACTS_SCHEMA.names).to_pylist()
        kept = [position for position, row in enumerate(facts) if row["key"] not in without]
        if kept:
            _commit_shard(root, [facts[i] for i in kept], file.read_row_groups(kept))


def read_index(root: AnyPath) -> pa.Table:
    """Return the index entries of all committed shards; a key may be in several shards."""
    return read_tables(root / "shards", f"*{SHARD_INDEX}", INDEX_SCHEMA)


def committed_rows(root: AnyPath, without: Collection[str] = ()) -> dict[str, dict[str, object]]:
    """Return one index entry for every committed key, ignoring the shards in `without`."""
    entries = read_index(root).to_pylist()
    return {entry["key"]: entry for entry in entries if entry["shard"] not in without}


def publish(
    root: AnyPath, entries: Sequence[dict[str, object]], text: NullText, null_key: str = NULL_TEXT
) -> AnyPath:
    """Publish a version of the cache that lists committed rows, and return its folder.

    The folder's name is a hash of the entries: publishing the same rows again changes nothing.

    Args:
        root: the cache.
        entries: index entries from `committed_rows`, in the order that readers will see.
        text: shape of the null prompt's zero embedding, used if no encoder makes one.
        null_key: key of the committed text that is the null prompt; by default the zero embedding.
    """
    facts = [{name: entry[name] for name in _FACTS_SCHEMA.names} for entry in entries]
    null_prompt = text.model_dump_json() if null_key == NULL_TEXT else ""
    version = digest(null_prompt, null_key, json.dumps(facts, sort_keys=True))
    directory = root / "versions" / version
    if (directory / COMMIT).exists():
        return directory
    index = pa.Table.from_pylist(list(entries), schema=INDEX_SCHEMA)
    write_parquet(index, directory / "index.parquet")
    texts = sorted({str(entry["text_key"]) for entry in entries} - {NULL_TEXT})
    found = committed_texts(root) if texts or null_key != NULL_TEXT else {}
    null = zero_text(text)
    if null_key != NULL_TEXT:
        with open_text_shard(root, found[null_key]) as file:
            null = read_text(file, found[null_key])
    null_table = pa.Table.from_pylist(text_records(NULL_TEXT, null), schema=TEXT_SCHEMA)
    write_parquet(null_table, directory / "text.parquet")
    if texts:
        table = pa.Table.from_pylist([found[key] for key in texts], schema=TEXT_INDEX_SCHEMA)
        write_parquet(table, directory / TEXT_INDEX)
    promise = {"num_rows": len(entries), "num_texts": len(texts), "null_key": null_key}
    write_text(directory / COMMIT, json.dumps(promise))
    return directory


def read_shard(path: AnyPath) -> Iterator[LatentRow]:
    """Yield the rows of a shard's file, in order.

    Raises:
        CacheError: if a row does not match its checksum.
    """
    with pq.ParquetFile(local_copy(path)) as file:
        for number in range(file.num_row_groups):
            record = file.read_row_group(number).to_pylist()[0]
            latents = from_blob(record, f"row {number}")
            facts = {name: record[name] for name in _FACTS_SCHEMA.names}
            yield LatentRow(RowFacts(**facts), latents)


def read_row(root: AnyPath, entry: Mapping[str, Any]) -> LatentRow:
    """Return the row that an index entry names.

    Raises:
        CacheError: if the shard holds another one there, or it does not match its checksum.
    """
    with open_parquet(root / "shards" / f"{entry['shard']}.parquet") as file:
        return _to_row(_read_record(file, entry), entry)


def _read_record(file: pq.ParquetFile, entry: Mapping[str, Any]) -> dict[str, Any]:
    return file.read_row_group(entry["row_group"]).to_pylist()[0]


def _to_row(record: dict[str, Any], entry: Mapping[str, Any]) -> LatentRow:
    where = f"row {entry['row_group']} of shard {entry['shard']}"
    if record["key"] != entry["key"]:
        raise CacheError(f"{where} is not the row that the index names")
    facts = {name: entry[name] for name in _FACTS_SCHEMA.names}
    return LatentRow(RowFacts(**facts), from_blob(record, where))


class LatentCache:
    """Random access to the rows of one published version; safe to share between threads.

    From an object store, each read fetches only its row. Training reads rows of many shards in
    random order, each once in an epoch: if whole shards were fetched, a disk too small for all of
    them would have dropped the other rows before they are read. Small shards, and those that are
    copied already, are read from the local disk.
    """

    def __init__(self, directory: AnyPath | str) -> None:
        """Open a folder returned by `publish`.

        Raises:
            CacheError: if the version was never committed or its index is incomplete.
        """
        self._directory = place(directory)
        try:
            promise = json.loads(local_copy(self._directory / COMMIT).read_text())
            self.index = read_table(self._directory / "index.parquet", INDEX_SCHEMA)
            self._null = self._read_null()
            self.texts = self._read_text_index() if promise.get("num_texts") else {}
        except FileNotFoundError as error:
            raise CacheError(
                f"{self._directory} holds no committed version of a latent cache: {error}"
            ) from error
        if len(self.index) != promise["num_rows"]:
            raise CacheError(
                f"{self._directory} lists {len(self.index)} of {promise['num_rows']} rows"
            )
        self.null_key: str = promise.get("null_key", NULL_TEXT)
        """Key of the null prompt's committed text; `null` if it is the zero embedding."""
        self._shards: OrderedDict[AnyPath, pq.ParquetFile] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.index)

    @property
    def version(self) -> str:
        """The version's name."""
        return self._directory.name

    def read(self, position: int) -> LatentRow:
        """Return a row by its position in the index, latents in the stored dtype.

        Raises:
            CacheError: if the shard is missing or the row does not match its checksum.
            IndexError: if there is no such row.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"row {position} of a cache of {len(self)} rows")
        entry = self.index.slice(position, 1).to_pylist()[0]
        with self._lock:
            record = _read_record(self._open("shards", entry["shard"]), entry)
        return _to_row(record, entry)

    def text(self, key: str = NULL_TEXT) -> TextRow:
        """Return the embedding of a prompt.

        Raises:
            CacheError: if there is none by that key.
        """
        if key == NULL_TEXT:
            return self._null
        if key not in self.texts:
            raise CacheError(f"no text embedding with key {key!r}")
        entry = self.texts[key]
        with self._lock:
            return read_text(self._open("texts", str(entry["shard"])), entry)

    def _read_null(self) -> TextRow:
        with pq.ParquetFile(local_copy(self._directory / "text.parquet")) as file:
            return read_text(file, {"key": NULL_TEXT, "row_group": 0})

    def _read_text_index(self) -> dict[str, dict[str, object]]:
        """Return the index entries of the version's prompts by key."""
        texts = read_table(self._directory / TEXT_INDEX, TEXT_INDEX_SCHEMA)
        return {entry["key"]: entry for entry in texts.to_pylist()}

    def _open(self, folder: str, shard: str) -> pq.ParquetFile:
        shards = self._directory.parent.parent / folder
        path = shards / f"{shard}.parquet"
        if path in self._shards:
            self._shards.move_to_end(path)
            return self._shards[path]
        if not (shards / f"{shard}{SHARD_INDEX}").exists():
            raise CacheError(f"shard {path} was never committed")
        try:
            self._shards[path] = open_parquet(path)
        except FileNotFoundError as error:
            raise CacheError(f"shard {path} is missing") from error
        if len(self._shards) > MAX_OPEN_SHARDS:
            self._shards.popitem(last=False)[1].close()
        return self._shards[path]
