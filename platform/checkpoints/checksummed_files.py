"""Write files whose checksums are taken on the way to the disk, so that nothing is read back."""

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

CHUNK_BYTES = 1 << 24
"""Bytes that are read or written at once; a disk with less than this free counts as full."""
Checksums = Mapping[str, list[int]]
"""Size in bytes and CRC-32 of files by their path in a checkpoint."""
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
}
"""What the safetensors format calls the kinds of numbers."""


def write_checksummed(path: Path, parts: Iterable[bytes | memoryview]) -> list[int]:
    """Write bytes until they are on the disk itself; return their number and their CRC-32.

    A power cut would otherwise leave a commit marker without the files that it vouches for.
    """
    size = crc = 0
    with path.open("wb") as file:
        for part in parts:
            for start in range(0, len(part), CHUNK_BYTES):
                chunk = part[start : start + CHUNK_BYTES]
                file.write(chunk)
                size, crc = size + len(chunk), zlib.crc32(chunk, crc)
        file.flush()
        os.fsync(file.fileno())
    return [size, crc]


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> list[int]:
    """Write a safetensors file of tensors in host memory, as `write_checksummed` does.

    The format: the length of the header in 8 bytes, a JSON header, then the numbers, those of wide
    dtypes first so that each is aligned (https://huggingface.co/docs/safetensors).
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    return write_checksummed(path, _parts({name: tensors[name].contiguous() for name in names}))


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    ends = accumulate(tensor.nbytes for tensor in tensors.values())
    header = {
        name: {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end - tensor.nbytes, end],
        }
        for (name, tensor), end in zip(tensors.items(), ends, strict=True)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for tensor in tensors.values():
        yield tensor.view(-1).view(torch.uint8).numpy().data
