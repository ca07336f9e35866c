"""What shards of latents and of prompts have in common: their commit and how they hold tensors."""

import zlib
from collections.abc import Sequence

import pyarrow as pa
import torch
from torch import Tensor

from magicdistill.data_pipeline.io.storage import AnyPath, write_parquet
from magicdistill.data_pipeline.rows import digest

SHARD_INDEX = ".index.parquet"
"""Suffix of the file that commits a shard: it is written after the shard itself."""
BLOB_FIELDS = [
    ("data", pa.large_binary()),
    ("shape", pa.list_(pa.int64())),
    ("dtype", pa.string()),
    ("crc32", pa.int64()),
]
"""Columns of a tensor: `data` holds its values in row-major order, `crc32` a checksum of `data`."""
_BLOB_OPTIONS = {"compression": "NONE", "use_dictionary": False, "write_statistics": False}
"""Options of the Parquet writer. Tensors are stored as they are, so that a row is read without
unpacking anything; nobody searches them by value, so they need no dictionary and no statistics."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class CacheError(Exception):
    """A cache is incomplete or damaged; the message says where."""


def commit_shard(
    folder: AnyPath,
    facts: Sequence[dict[str, object]],
    table: pa.Table,
    *,
    rows_per_group: int,
    index_schema: pa.Schema,
) -> str:
    """Write a shard and then its index, which commits it; return its name, a hash of its keys.

    Args:
        folder: the folder of the shards.
        facts: what the index says of each row group, its `key` among it, in order.
        table: the content.
        rows_per_group: rows of `table` that are one row group.
        index_schema: columns of the index: those of `facts`, `shard` and `row_group`.
    """
    name = digest(*(row["key"] for row in facts))
    write_parquet(table, folder / f"{name}.parquet", row_group_size=rows_per_group, **_BLOB_OPTIONS)
    index = [row | {"shard": name, "row_group": number} for number, row in enumerate(facts)]
    index_table = pa.Table.from_pylist(index, schema=index_schema)
    write_parquet(index_table, folder / f"{name}{SHARD_INDEX}")
    return name


def to_blob(tensor: Tensor) -> dict[str, object]:
    """Return the values of `BLOB_FIELDS` for a tensor on the CPU, of any shape."""
    data = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return {
        "data": data,
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "crc32": zlib.crc32(data),
    }


def from_blob(record: dict[str, object], where: str) -> Tensor:
    """Return the tensor of a record, in its stored shape and dtype; `where` names it in errors.

    Raises:
        CacheError: if the bytes do not match their checksum.
    """
    data, shape, dtype = record["data"], record["shape"], record["dtype"]
    assert isinstance(data, bytes) and isinstance(shape, list) and isinstance(dtype, str)
    if zlib.crc32(data) != record["crc32"]:
        raise CacheError(f"{where} does not match its checksum")
    if not data:  # a prompt without a pooled embedding has one of width 0
        return torch.empty(shape, dtype=_DTYPES[dtype])
    return torch.frombuffer(bytearray(data), dtype=_DTYPES[dtype]).view(shape)
