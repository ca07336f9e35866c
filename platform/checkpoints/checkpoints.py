"""Checkpoints of a run: each is complete and intact, or does not count."""

import errno
import json
import os
import shutil
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
from safetensors import SafetensorError

from magicdistill.platform.checkpoints.s3_mirror import Mirror, MirrorError
from magicdistill.platform.cluster import ranks
from magicdistill.platform.runs.run_directory import COMMITTED, RunDirectory

PREFIX = "cycle-"
"""Begins the name of a checkpoint; the cycle follows in seven digits, so that names sort by age."""
GENERATOR = "generator"
"""The role whose network is exported, scored and sampled."""
EMA = "ema"
"""The folder of the averaged weights beside those of the roles."""
CHUNK_BYTES = 1 << 24
"""Bytes that are read at once; a disk with less than this free counts as full."""


class Saved(Protocol):
    """Training state that every rank writes to a folder and reads back: an engine, an average."""

    def save(self, directory: Path) -> None:
        """Write this rank's share; every rank calls it."""
        ...

    def load(self, directory: Path) -> None:
        """Restore what any number of ranks wrote; every rank calls it."""
        ...


class DiskFullError(OSError):
    """Says that there is no room for a checkpoint; the previous ones are intact."""


class DamagedError(Exception):
    """Says that every checkpoint of the run is damaged."""


class Checkpoints:
    """Saves and restores all roles.

    The commit marker is written last and names every file with its size and checksum. A folder
    without it does not count; one whose files differ from it is passed over for an older one. The
    newest `keep` stay. `mirror` is an address to which all are copied, and from which those are
    fetched that are damaged or missing in `folder`. `warn` receives a line for people about each
    that is passed over or not mirrored.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        warn: Callable[[str], None] = print,
        mirror: str | None = None,
    ) -> None:
        self.folder, self.keep, self.warn = folder, keep, warn
        self.mirror = Mirror(mirror, COMMITTED) if mirror else None

    @classmethod
    def of(cls, run: RunDirectory) -> "Checkpoints":
        """Return the checkpoints of a run, kept and mirrored as its recipe says."""
        recipe = run.recipe()
        name = f"{run.path.name}-{run.provenance().run_id}"
        mirror = recipe.mirror and f"{recipe.mirror.rstrip('/')}/{name}"
        return cls(run.checkpoints, recipe.schedule.keep_checkpoints, run.say, mirror)

    def committed(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        return sorted(marker.parent for marker in self.folder.glob(f"{PREFIX}*/{COMMITTED}"))

    def names(self) -> list[str]:
        """Return the complete checkpoints here and in the mirror, oldest first."""
        mirrored = self.mirror.names() if self.mirror else set()
        return sorted(mirrored | {path.name for path in self.committed()})

    def save(
        self,
        cycle: int,
        engines: Mapping[str, Saved],
        ema: Saved | None,
        spared: Callable[[], Collection[int]] = tuple,
    ) -> None:
        """Write the state after `cycle` cycles; every rank calls it.

        `spared` tells the first rank, once all is written, which cycles' checkpoints stay beside
        the newest. Raises DiskFullError where there is no room, after removing what it wrote.
        """
        path = self.folder / checkpoint_name(cycle)
        if ranks.rank() == 0:
            shutil.rmtree(path, ignore_errors=True)  # what a run that was killed left there
            path.mkdir(parents=True)
        ranks.barrier()
        with _room_for(path):
            for role, engine in engines.items():
                engine.save(path / role)
            if ema is not None:
                ema.save(path / EMA)
            ranks.barrier()
            # Checksums are of what is on the disk, and the marker is the last file that is written.
            files = _checksums(path)
            if ranks.rank() == 0:
                _commit(path, cycle, files)
        ranks.barrier()
        names = {checkpoint_name(number) for number in spared()} if ranks.rank() == 0 else set()
        if self.mirror:
            self._copy(path, self.mirror, names)
        if ranks.rank() == 0:
            self._prune(names)
        ranks.barrier()

    def _copy(self, path: Path, mirror: Mirror, spared: set[str]) -> None:
        """Copy to the mirror; training goes on where that fails, as the next copy may succeed."""
        try:
            mirror.put(path)
            mirror.prune(self.keep, spared)
        except MirrorError as error:
            if ranks.rank() == 0:
                self.warn(f"checkpoint {path.name} is not mirrored: {error}")

    def load_latest(self, engines: Mapping[str, Saved], ema: Saved | None) -> int:
        """Restore the newest intact checkpoint; return its cycle, 0 where none was ever saved.

        A damaged one loses its marker here: it would count among the newest when older ones are
        pruned, which are intact. Raises DamagedError where all are damaged, because a fresh start
        would overwrite the run. Every rank calls it.
        """
        names = ranks.of_first(self.names())
        for name in reversed(names):
            path = self.folder / name
            damaged = self.bring(path)
            if not damaged:
                self._load(path, engines, ema)
                return int(name.removeprefix(PREFIX))
            ranks.barrier()
            if ranks.rank() == 0:
                (path / COMMITTED).unlink(missing_ok=True)
                self.warn(f"checkpoint {name} is damaged ({', '.join(damaged)}): passed over")
        if names:
            raise DamagedError(f"no checkpoint in {self.folder} is intact: start a new run")
        return 0

    def bring(self, path: Path) -> list[str]:
        """Fetch a checkpoint from the mirror if it is damaged; name what is damaged all the same.

        Every rank calls it.
        """
        damaged = find_damage(path)
        if damaged and self.mirror and ranks.of_first(path.name in self.mirror.names()):
            self.mirror.fetch(path)
            damaged = find_damage(path)
        return damaged

    def _load(self, path: Path, engines: Mapping[str, Saved], ema: Saved | None) -> None:
        for role, engine in engines.items():
            engine.load(path / role)
        if ema is not None:
            ema.load(path / EMA)

    def _prune(self, spared: set[str]) -> None:
        """Remove all but the newest and the spared; what a kill left half written goes too."""
        complete = self.committed()
        kept = {path.name for path in complete[-self.keep :]} | spared
        for path in set(self.folder.glob(f"{PREFIX}*")) - set(complete):
            shutil.rmtree(path, ignore_errors=True)
        for path in complete:
            if path.name not in kept:
                # The marker goes first: a folder that a kill leaves half removed does not count.
                (path / COMMITTED).unlink()
                shutil.rmtree(path, ignore_errors=True)


def checkpoint_name(cycle: int) -> str:
    """Return the name of the checkpoint after `cycle` cycles."""
    return f"{PREFIX}{cycle:07d}"


def cycle_of(checkpoint: Path) -> int:
    """Return the number of cycles after which a checkpoint was saved."""
    return int(checkpoint.name.removeprefix(PREFIX))


def find_damage(path: Path) -> list[str]:
    """Name the files of a committed checkpoint that are not as they were written.

    Every rank of a job calls it.
    """
    marker = ranks.of_first(_read_marker(path))
    return _difference(marker["files"], _checksums(path)) if marker else [COMMITTED]


@contextmanager
def _room_for(path: Path) -> Iterator[None]:
    """Turn a full disk, which every library reports in its own words, into a clear error."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        full = any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT))
        if not full and shutil.disk_usage(path.parent).free > CHUNK_BYTES:
            raise
        shutil.rmtree(path, ignore_errors=True)
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
    except (FileNotFoundError, ValueError):
        return None
    return marker if isinstance(marker, dict) and {"cycle", "files"} <= marker.keys() else None


def _commit(path: Path, cycle: int, files: Mapping[str, list[int]]) -> None:
    """Write the marker under another name and rename it, so that it is whole or not there."""
    temporary = path / f".{COMMITTED}"
    with temporary.open("w") as file:
        json.dump({"cycle": cycle, "files": files}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path / COMMITTED)


def _checksums(path: Path) -> dict[str, list[int]]:
    """Return size in bytes and CRC-32 of every file on the disk; the ranks share the reading."""
    found = sorted(p for p in path.rglob("*") if p.is_file() and COMMITTED not in p.name)
    share = found[ranks.rank() :: ranks.world_size()]
    mine = {str(p.relative_to(path)): _size_and_crc(p) for p in share}
    if ranks.world_size() == 1:
        return mine
    parts: list[dict[str, list[int]]] = [{} for _ in range(ranks.world_size())]
    dist.all_gather_object(parts, mine)
    return {name: facts for part in parts for name, facts in part.items()}


def _size_and_crc(path: Path) -> list[int]:
    size = crc = 0
    with path.open("rb") as file:
        os.fsync(file.fileno())  # a power cut could leave the marker without the file otherwise
        while chunk := file.read(CHUNK_BYTES):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return [size, crc]


def _difference(wanted: Mapping[str, list[int]], found: Mapping[str, list[int]]) -> list[str]:
    """Name the files that are missing, truncated or changed."""
    return [name for name, facts in sorted(wanted.items()) if found.get(name) != facts]
