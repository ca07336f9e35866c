"""The folder of one checkpoint: its name, its files, and the marker that vouches for them."""

import errno
import json
import os
import re
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from magicdistill.platform.checkpoints.checksummed_files import CHUNK_BYTES, Checksums
from magicdistill.platform.cluster import ranks
from magicdistill.platform.runs.run_directory import COMMITTED

PREFIX = "cycle-"
"""Begins the name of a checkpoint; the cycle follows in seven digits, so that names sort by age."""
T = TypeVar("T")


class DiskFullError(OSError):
    """No room for a checkpoint; the previous ones are intact."""


def write_folder(path: Path, write: Callable[[], Checksums]) -> None:
    """Make a folder anew, let every rank write its share, and commit it; every rank calls it.

    `write` returns the checksums of this rank's files, for the marker. Where a rank fails all of
    them raise, as `ranks.all_succeed` does: DiskFullError where there is
    no room.
    """

    def clear() -> None:
        if is_copy(path):  # people may want it, and it is in the way
            path.replace(path.with_name(f"{path.name}-copy-{uuid.uuid4().hex[:8]}"))
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)

    is_first = ranks.rank() == 0
    _together(path, clear if is_first else lambda: None)
    files = _merged(_together(path, write))
    _together(path, (lambda: _commit(path, files)) if is_first else lambda: None)


def checkpoint_name(cycle: int) -> str:
    """Return the name of a cycle's folder."""
    return f"{PREFIX}{cycle:07d}"


def is_checkpoint(name: str) -> bool:
    """Tell a checkpoint's name from that of a copy of one, or of anything else."""
    digits = re.fullmatch(rf"{PREFIX}(\d+)", name, re.ASCII)
    return digits is not None and name == checkpoint_name(int(digits[1]))


def cycle_of(checkpoint: Path | str) -> int:
    """Return the cycles after which a checkpoint was saved, from its path or its name."""
    return int(Path(checkpoint).name.removeprefix(PREFIX))


def find_damage(path: Path) -> list[str]:
    """Name the files of a committed checkpoint that are not as they were written.

    Every rank of a job calls it. Files that the marker does not name are no damage.
    """
    marker = ranks.of_first(_read_marker(path) if ranks.rank() == 0 else None)
    if marker is None or marker["cycle"] != cycle_of(path):
        return [COMMITTED]
    wanted: Checksums = marker["files"]
    found = _merged(_readable(path, _share(sorted(wanted))))
    return [name for name, facts in sorted(wanted.items()) if found.get(name) != facts]


def _together(path: Path, action: Callable[[], T]) -> T:
    """Let every rank act on a checkpoint, where all of them succeed."""

    def act() -> T:
        with _room_for(path):
            return action()

    return ranks.all_succeed(act)


@contextmanager
def _room_for(path: Path) -> Iterator[None]:
    """Turn a full disk, which every library reports in its own words, into a clear error."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        full = any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT))
        if not full and shutil.disk_usage(path.parent).free > CHUNK_BYTES:
            raise
        raise DiskFullError(
            errno.ENOSPC,
            "no space left for a checkpoint; the previous ones are intact: free some space "
            "and continue with --resume",
            str(path),
        ) from error


def _read_marker(path: Path) -> dict[str, Any] | None:
    """Return the facts of a checkpoint, None where the marker is missing or damaged."""
    try:
        marker = json.loads((path / COMMITTED).read_text())
    except (OSError, ValueError):
        return None
    is_whole = isinstance(marker, dict) and isinstance(marker.get("files"), dict)
    return marker if is_whole and "cycle" in marker else None


def is_copy(path: Path) -> bool:
    """Tell whether a folder's marker was written for another cycle than its name says."""
    marker = _read_marker(path)
    return marker is not None and marker["cycle"] != cycle_of(path)


def _commit(path: Path, files: Checksums) -> None:
    temporary = path / f".{COMMITTED}"
    with temporary.open("w") as file:
        json.dump({"cycle": cycle_of(path), "files": files}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path / COMMITTED)


def files_of(path: Path) -> list[str]:
    """Return the files of a checkpoint by their paths in it.

    Hidden ones are not ours but those of NFS and macOS, and may vanish at any time.
    """
    found = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
    return sorted(str(file) for file in found if not file.name.startswith("."))


def _share(names: list[str]) -> list[str]:
    """Return the files that this rank reads."""
    return names[ranks.rank() :: ranks.world_size()]


def _merged(mine: Checksums) -> Checksums:
    """Return the checksums of all ranks; every rank calls it."""
    return {name: facts for part in ranks.of_all(mine) for name, facts in part.items()}


def _readable(path: Path, names: list[str]) -> Checksums:
    """Return the checksums of those files that can be read."""
    found: dict[str, list[int]] = {}
    for name in names:
        with suppress(OSError):
            found[name] = _size_and_crc(path / name)
    return found


def _size_and_crc(path: Path) -> list[int]:
    size = crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return [size, crc]
