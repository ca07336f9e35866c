"""Checksums of files, taken once for each state of a file in a process."""

import hashlib
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path

END_BYTES = 1 << 20
"""Bytes that are hashed at each end of a file: tens of gigabytes take seconds that way."""


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    state = path.stat()
    return _sha256_of_state(path, state.st_size, state.st_mtime_ns)


@cache
def digest_weights(location: Path) -> str:
    """Return a hash of a file, or of all files in a folder; each is read once in a process."""
    files = sorted(p for p in location.rglob("*") if p.is_file()) or [location]
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def digest_ends(root: Path, files: Iterable[Path]) -> str:
    """Return a hash of the names below `root`, the sizes and both ends of some files, in order."""
    found = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        found.update(f"{path.relative_to(root).as_posix()} {size}".encode())
        with path.open("rb") as file:
            found.update(file.read(END_BYTES))
            file.seek(max(END_BYTES, size - END_BYTES))
            found.update(file.read())
    return found.hexdigest()[:16]


@lru_cache
def _sha256_of_state(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
