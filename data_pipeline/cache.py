"""The latent cache: content-addressed rows in committed Parquet shards, and versions over them.

    <root>/shards/<name>.parquet         latents, uncompressed, one row per row group
    <root>/shards/<name>.index.parquet   the same rows without latents; its presence commits them
    <root>/versions/<version>/           index.parquet, text.parquet and, last, COMMIT

A version lists rows of any committed shards, so a new policy re-uses what is encoded already.
"""

import json
import threading
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from magicdistill.data_pipeline.clips import ClipRow, digest
from magicdistill.data_pipeline.config import Bucket, NullText
from magicdistill.data_pipeline.storage import (
    AnyPath,
    local_copy,
    place,
    read_tables,
    write_parquet,
    write_text,
)
from magicdistill.data_pipeline.windows import Window

NULL_TEXT = "null"
COMMIT = "COMMIT"
MAX_OPEN_SHARDS = 64
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class CacheError(Exception):
    """A cache is incomplete or damaged; the message says where."""


@dataclass(frozen=True)
class RowFacts:
    """What the index knows of a row."""

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
    latents: Float[Tensor, "c f h w"]

    @property
    def text_key(self) -> str:
        """Names the row's prompt for `LatentCache.text`."""
        return self.facts.text_key


@dataclass(frozen=True)
class TextRow:
    """The embedding of one prompt."""

    tokens: Float[Tensor, "n d"]
    mask: Bool[Tensor, " n"]
    pooled: Float[Tensor, " p"]


_ARROW_TYPES = {str: pa.string(), int: pa.int64(), bool: pa.bool_(), float: pa.float64()}
_FACTS_SCHEMA = pa.schema([(f.name, _ARROW_TYPES[f.type]) for f in fields(RowFacts)])  # type: ignore[index]
_BLOB_FIELDS = [
    ("data", pa.large_binary()),
    ("shape", pa.list_(pa.int64())),
    ("dtype", pa.string()),
    ("crc32", pa.int64()),
]
_SHARD_SCHEMA = pa.schema([*_FACTS_SCHEMA, *_BLOB_FIELDS])
INDEX_SCHEMA = pa.schema([*_FACTS_SCHEMA, ("shard", pa.string()), ("row_group", pa.int64())])
_TEXT_SCHEMA = pa.schema([("key", pa.string()), ("part", pa.string()), *_BLOB_FIELDS])


def row_facts(
    clip: ClipRow, window: Window, bucket: Bucket, vae_fingerprint: str, stored_dtype: str
) -> RowFacts:
    """Return the index entry of a window; its key depends on everything that shapes the latents."""
    transform = f"centre-crop area {bucket}"
    if clip.crop:
        transform += f" of {clip.crop}"
    if clip.time_scale != 1:
        transform += f" at time scale {clip.time_scale:g}"
    key = digest(
        clip.content_hash,
        clip.start,
        clip.stop,
        window.start,
        window.flipped,
        transform,
        vae_fingerprint,
        stored_dtype,
    )
    return RowFacts(
        key=key,
        clip_id=clip.clip_id,
        source_id=clip.source_id,
        license=clip.license,
        mixture=clip.mixture,
        bucket=str(bucket),
        window_start=window.start,
        flipped=window.flipped,
    )


def write_shard(root: AnyPath, rows: Sequence[LatentRow]) -> str:
    """Write and commit one shard, named by its keys; writing it again replaces it by its equal.

    Raises:
        CacheError: if a latent is not finite; nothing is written then.
    """
    name = digest(*(row.facts.key for row in rows))
    for row in rows:
        if not torch.isfinite(row.latents).all():
            raise CacheError(f"latents of {row.facts.source_id} are not finite")
    directory = root / "shards"
    records = [vars(row.facts) | _to_blob(row.latents) for row in rows]
    table = pa.Table.from_pylist(records, schema=_SHARD_SCHEMA)
    options = {"compression": "NONE", "use_dictionary": False, "write_statistics": False}
    write_parquet(table, directory / f"{name}.parquet", row_group_size=1, **options)
    index = [
        vars(row.facts) | {"shard": name, "row_group": position}
        for position, row in enumerate(rows)
    ]
    index_table = pa.Table.from_pylist(index, schema=INDEX_SCHEMA)
    write_parquet(index_table, directory / f"{name}.index.parquet")
    return name


def committed_rows(root: AnyPath) -> dict[str, dict[str, object]]:
    """Return the index entries of every committed shard by key."""
    entries = read_tables(root / "shards", "*.index.parquet", INDEX_SCHEMA).to_pylist()
    return {entry["key"]: entry for entry in entries}


def publish(root: AnyPath, entries: Sequence[dict[str, object]], text: NullText) -> AnyPath:
    """Publish a version over committed rows and return its folder; the same rows, the same one.

    Args:
        root: the cache.
        entries: index entries from `committed_rows`, in the order that readers will see.
        text: shape of the null prompt's embedding.
    """
    version = digest(text.model_dump_json(), *(f"{e['key']} {e['clip_id']}" for e in entries))
    directory = root / "versions" / version
    if (directory / COMMIT).exists():
        return directory
    index = pa.Table.from_pylist(list(entries), schema=INDEX_SCHEMA)
    write_parquet(index, directory / "index.parquet")
    write_parquet(_null_text_table(text), directory / "text.parquet")
    write_text(directory / COMMIT, json.dumps({"num_rows": len(entries)}))
    return directory


class LatentCache:
    """Random access to one published version; safe to share between threads.

    Of a version in an object store, each shard is copied to the local disk when it is first read.
    """

    def __init__(self, directory: AnyPath | str) -> None:
        """Open a folder returned by `publish`.

        Raises:
            CacheError: if the version was never committed or its index is incomplete.
        """
        self._directory = place(directory)
        if not (self._directory / COMMIT).is_file():
            raise CacheError(f"{self._directory} holds no committed version of a latent cache")
        marker, index, text = (
            local_copy(self._directory / name) for name in (COMMIT, "index.parquet", "text.parquet")
        )
        self.index = pq.read_table(index, schema=INDEX_SCHEMA)
        promised = json.loads(marker.read_text())["num_rows"]
        if len(self.index) != promised:
            raise CacheError(f"{self._directory} lists {len(self.index)} of {promised} rows")
        self._texts = _read_texts(text)
        self._shards: OrderedDict[str, pq.ParquetFile] = OrderedDict()
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
        shard, row_group = entry.pop("shard"), entry.pop("row_group")
        with self._lock:
            record = self._open(shard).read_row_group(row_group).to_pylist()[0]
        where = f"row {row_group} of shard {shard}"
        if record["key"] != entry["key"]:
            raise CacheError(f"{where} is not the row that the index names")
        return LatentRow(RowFacts(**entry), _from_blob(record, where))

    def text(self, key: str = NULL_TEXT) -> TextRow:
        """Return the embedding of a prompt.

        Raises:
            CacheError: if there is none by that key.
        """
        if key not in self._texts:
            raise CacheError(f"no text embedding with key {key!r}")
        return self._texts[key]

    def _open(self, shard: str) -> pq.ParquetFile:
        if shard in self._shards:
            self._shards.move_to_end(shard)
            return self._shards[shard]
        shards = self._directory.parent.parent / "shards"
        path = shards / f"{shard}.parquet"
        if not path.is_file() or not (shards / f"{shard}.index.parquet").is_file():
            raise CacheError(f"shard {path} is missing or was never committed")
        self._shards[shard] = pq.ParquetFile(local_copy(path))
        if len(self._shards) > MAX_OPEN_SHARDS:
            self._shards.popitem(last=False)[1].close()
        return self._shards[shard]


def _null_text_table(text: NullText) -> pa.Table:
    """Return the zero embedding as `Conditions.null` has it: one valid token, the others masked."""
    parts = {
        "tokens": torch.zeros(text.num_tokens, text.token_dim),
        "mask": (torch.arange(text.num_tokens) == 0).float(),
        "pooled": torch.zeros(text.pooled_dim),
    }
    records = [{"key": NULL_TEXT, "part": name} | _to_blob(part) for name, part in parts.items()]
    return pa.Table.from_pylist(records, schema=_TEXT_SCHEMA)


def _read_texts(path: Path) -> dict[str, TextRow]:
    parts: dict[str, dict[str, Tensor]] = {}
    for record in pq.read_table(path, schema=_TEXT_SCHEMA).to_pylist():
        where = f"{record['part']} of text {record['key']!r}"
        parts.setdefault(record["key"], {})[record["part"]] = _from_blob(record, where)
    return {
        key: TextRow(found["tokens"], found["mask"].bool(), found["pooled"])
        for key, found in parts.items()
    }


def _to_blob(tensor: Tensor) -> dict[str, object]:
    data = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return {
        "data": data,
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "crc32": zlib.crc32(data),
    }


def _from_blob(record: dict[str, object], where: str) -> Tensor:
    data, shape, dtype = record["data"], record["shape"], record["dtype"]
    assert isinstance(data, bytes) and isinstance(shape, list) and isinstance(dtype, str)
    if zlib.crc32(data) != record["crc32"]:
        raise CacheError(f"{where} does not match its checksum")
    return torch.frombuffer(bytearray(data), dtype=_DTYPES[dtype]).view(shape)
