"""What shards of latents and of prompts have in common: their commit and how they hold tensors."""

import zlib

import pyarrow as pa
import torch
from torch import Tensor

SHARD_INDEX = ".index.parquet"
"""Suffix of the file that commits a shard: it is written after the shard itself."""
BLOB_FIELDS = [
    ("data", pa.large_binary()),
    ("shape", pa.list_(pa.int64())),
    ("dtype", pa.string()),
    ("crc32", pa.int64()),
]
"""Columns of a tensor: `data` holds its values in row-major order, `crc32` a checksum of `data`."""
BLOB_OPTIONS = {"compression": "NONE", "use_dictionary": False, "write_statistics": False}
"""Options of the Parquet writer. Tensors are stored as they are, so that a row is read without
unpacking anything; nobody searches them by value, so they need no dictionary and no statistics."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class CacheError(Exception):
    """A cache is incomplete or damaged; the message says where."""


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
    return torch.frombuffer(bytearray(data), dtype=_DTYPES[dtype]).view(shape)
