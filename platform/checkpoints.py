"""Checkpoints of a run: complete and intact, or not there."""

import errno
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from magicdistill.platform.engine import Ema, Engine

COMMITTED = "COMMITTED"
CHUNK_BYTES = 1 << 24


class DiskFullError(OSError):
    """No room for a checkpoint; the previous ones are intact."""


class DamagedError(Exception):
    """Every checkpoint of the run is damaged."""


class Checkpoints:
    """Saves and restores all roles.

    The commit marker is written last and names every file with its size and checksum. A folder
    without it does not count; one whose files differ from it is passed over for an older one.
    `warn` receives a line for people about each that is passed over.
    """

    def __init__(self, folder: Path, keep: int, warn: Callable[[str], None] = print) -> None:
        self.folder, self.keep, self.warn = folder, keep, warn

    def committed(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        return sorted(marker.parent for marker in self.folder.glob(f"cycle-*/{COMMITTED}"))

    def save(self, cycle: int, engines: Mapping[str, Engine], ema: Ema | None) -> None:
        """Write the state after `cycle` cycles; every rank calls it.

        Raises DiskFullError where there is no room, after removing what it wrote.
        """
        path = self.folder / f"cycle-{cycle:07d}"
        if _rank() == 0:
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
        _barrier()
        with _room_for(path):
            for role, engine in engines.items():
                engine.save(path / role)
            if ema is not None:
                torch.save(ema.average, path / f"ema-{_rank()}.pt")
            _barrier()
            files = _checksums(path)
            if _rank() == 0:
                _commit(path, cycle, files)
                self._prune()
        _barrier()

    def load_latest(self, engines: Mapping[str, Engine], ema: Ema | None) -> int:
        """Restore the newest intact checkpoint; return its cycle, 0 where none was ever saved.

        A damaged one loses its marker, so that pruning keeps the intact ones. Raises
        DamagedError where all are damaged: a fresh start would overwrite the run.
        """
        paths = self.committed()
        for path in reversed(paths):
            marker = _read_marker(path)
            damaged = _difference(marker["files"], _checksums(path)) if marker else [COMMITTED]
            if marker and not damaged:
                self._load(path, engines, ema)
                return marker["cycle"]
            _barrier()
            if _rank() == 0:
                (path / COMMITTED).unlink()
                self.warn(f"checkpoint {path.name} is damaged ({', '.join(damaged)}): passed over")
        if paths:
            raise DamagedError(f"no checkpoint in {self.folder} is intact: start a new run")
        return 0

    def _load(self, path: Path, engines: Mapping[str, Engine], ema: Ema | None) -> None:
        for role, engine in engines.items():
            engine.load(path / role)
        if ema is not None:
            ema.average = torch.load(path / f"ema-{_rank()}.pt", weights_only=True)

    def _prune(self) -> None:
        for old in self.committed()[: -self.keep]:
            (old / COMMITTED).unlink()
            shutil.rmtree(old)


@contextmanager
def _room_for(path: Path) -> Iterator[None]:
    """Turn a full disk, which torch reports in its own words, into a clear error."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and shutil.disk_usage(path).free > CHUNK_BYTES:
            raise
        shutil.rmtree(path, ignore_errors=True)
        raise DiskFullError(
            errno.ENOSPC,
            "no space left for a checkpoint; the previous ones are intact: free some space "
            "and continue with --resume",
            str(path),
        ) from error


def _read_marker(path: Path) -> dict[str, Any] | None:
    """Return the facts of a checkpoint, None where the marker itself is damaged."""
    try:
        marker = json.loads((path / COMMITTED).read_text())
    except ValueError:
        return None
    return marker if isinstance(marker, dict) and {"cycle", "files"} <= marker.keys() else None


def _commit(path: Path, cycle: int, files: Mapping[str, list[int]]) -> None:
    temporary = path / f".{COMMITTED}"
    with temporary.open("w") as file:
        json.dump({"cycle": cycle, "files": files}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path / COMMITTED)


def _checksums(path: Path) -> dict[str, list[int]]:
    """Return size in bytes and CRC-32 of every file; the ranks share the reading."""
    found = sorted(p for p in path.rglob("*") if p.is_file() and COMMITTED not in p.name)
    mine = {str(p.relative_to(path)): _size_and_crc(p) for p in found[_rank() :: _world_size()]}
    if _world_size() == 1:
        return mine
    parts: list[dict[str, list[int]]] = [{} for _ in range(_world_size())]
    dist.all_gather_object(parts, mine)
    return {name: facts for part in parts for name, facts in part.items()}


def _size_and_crc(path: Path) -> list[int]:
    size = crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return [size, crc]


def _difference(wanted: Mapping[str, list[int]], found: Mapping[str, list[int]]) -> list[str]:
    """Name the files that are missing, truncated or changed."""
    return [name for name, facts in sorted(wanted.items()) if found.get(name) != facts]


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
