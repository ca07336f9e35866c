"""Copies of checkpoints at an address, such as a bucket of S3."""

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from magicdistill.data_pipeline.io.object_stores import is_remote
from magicdistill.platform.checkpoints.checkpoint_folder import (
    COMMITTED,
    cycle_of,
    files_of,
    is_checkpoint,
)
from magicdistill.platform.cluster import ranks

T = TypeVar("T")
CONNECT_S, READ_S, ATTEMPTS = 5, 20, 2
"""Patience with a bucket that does not answer: a run waits for it at every checkpoint."""
ASIDE = ".set-aside"
"""What the name of a marker ends in where its folder is not to count any more."""


class MirrorError(Exception):
    """Says that the mirror cannot be used now, and why; all ranks raise it together."""


class Mirror:
    """Checkpoint folders below an address of fsspec: `s3://bucket/prefix` or a path.

    The marker, a file of each folder, is copied last: a folder without it does not count, nor one
    of another name. Each rank copies its share of the files. Credentials and endpoint are the
    environment's (AWS_ENDPOINT_URL). Every rank calls `put`, `fetch` and `prune`, which raise
    MirrorError on all or none; the other methods are for one process.
    """

    def __init__(self, address: str) -> None:
        from fsspec.core import url_to_fs

        self.address = address
        self.files: Any
        options = _short_of_patience() if is_remote(address) else {}
        self.files, self.root = url_to_fs(address, use_listings_cache=False, **options)
        self.files.retries = ATTEMPTS  # of s3fs, around those of botocore

    def names(self) -> set[str]:
        """Return the complete folders."""
        try:
            found = map(PurePosixPath, self.files.find(self.root))
            folders = {path.parent.name for path in found if path.name == COMMITTED}
            return set(filter(is_checkpoint, folders))
        except FileNotFoundError:  # a bucket that the first copy will make
            return set()
        except Exception as error:  # each file system has its own
            raise self._failure(error) from error

    def set_aside(self, name: str) -> None:
        """Let a folder not count any more; its files stay until a copy of that name comes."""
        marker = f"{self.root}/{name}/{COMMITTED}"
        try:
            self.files.mv(marker, f"{marker}{ASIDE}")
        except Exception as error:  # as above
            raise self._failure(error) from error

    def put(self, folder: Path) -> None:
        """Copy a local folder to the address."""
        files = [folder / name for name in files_of(folder)]
        mine = _share(file for file in files if file.name != COMMITTED)
        self._together(lambda: self._remove(folder.name) if ranks.rank() == 0 else None)
        self._together(lambda: self._put(folder, mine))
        marker = [folder / COMMITTED] if ranks.rank() == 0 else []
        self._together(lambda: self._put(folder, marker))

    def _put(self, folder: Path, files: Iterable[Path]) -> None:
        for file in files:
            target = f"{self.root}/{folder.name}/{file.relative_to(folder).as_posix()}"
            self.files.makedirs(target.rpartition("/")[0], exist_ok=True)
            self.files.put_file(str(file), target)

    def fetch(self, folder: Path) -> None:
        """Copy the folder of that name from the address."""
        there = f"{self.root}/{folder.name}"
        listed = self._together(lambda: self.files.find(there) if ranks.rank() == 0 else [])
        found = [PurePosixPath(file).relative_to(there) for file in ranks.of_first(listed)]
        mine = _share(name for name in found if name.name != COMMITTED)
        self._together(lambda: self._get(folder, mine))
        marker = [PurePosixPath(COMMITTED)] if ranks.rank() == 0 else []
        self._together(lambda: self._get(folder, marker))

    def _get(self, folder: Path, names: Iterable[PurePosixPath]) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            self.files.get_file(f"{self.root}/{folder.name}/{name}", str(folder / name))

    def prune(self, keep: int, spared: Collection[str]) -> None:
        """Delete all but the newest folders and the spared ones."""
        self._together(lambda: self._prune(keep, spared) if ranks.rank() == 0 else None)

    def _prune(self, keep: int, spared: Collection[str]) -> None:
        for name in sorted(self.names(), key=cycle_of)[:-keep]:
            if name not in spared:
                self._remove(name)

    def _remove(self, name: str) -> None:
        """Delete a folder, where it is there, its marker first."""
        folder = f"{self.root}/{name}"
        if self.files.exists(folder):
            if self.files.exists(f"{folder}/{COMMITTED}"):
                self.files.rm(f"{folder}/{COMMITTED}")
            self.files.rm(folder, recursive=True)

    def _together(self, action: Callable[[], T]) -> T:
        """Let every rank act; raise MirrorError on all where one failed."""
        try:
            return ranks.all_succeed(action)
        except Exception as error:  # each file system has its own
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> MirrorError:
        if isinstance(error, MirrorError):
            return error
        return MirrorError(f"the mirror {self.address} failed: {type(error).__name__}: {error}")


def _short_of_patience() -> dict[str, Any]:
    """Return options of s3fs."""
    retries = {"mode": "standard", "total_max_attempts": ATTEMPTS}
    return {
        "config_kwargs": {
            "connect_timeout": CONNECT_S,
            "read_timeout": READ_S,
            "retries": retries,
        }
    }


def _share(things: Iterable[T]) -> Sequence[T]:
    """Return every n-th thing for this rank of n; together the ranks have all."""
    return list(things)[ranks.rank() :: ranks.world_size()]
