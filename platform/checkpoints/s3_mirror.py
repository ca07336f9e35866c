"""Copies of checkpoints at an address, such as a bucket of S3."""

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from magicdistill.platform.cluster import ranks

T = TypeVar("T")


class MirrorError(Exception):
    """Says that a copy did not succeed; all ranks raise it together."""


class Mirror:
    """Checkpoint folders below an address of fsspec: `s3://bucket/prefix` or a path.

    The marker, a file of each folder, is copied last: a folder without it does not count. Each rank
    copies its share of the files. Credentials and endpoint are the environment's
    (AWS_ENDPOINT_URL).
    """

    def __init__(self, address: str, marker: str) -> None:
        from fsspec.core import url_to_fs

        self.marker = marker
        self.files: Any
        self.files, self.root = url_to_fs(address, use_listings_cache=False)

    def names(self) -> set[str]:
        """Return the names of the complete folders."""
        markers = self.files.glob(f"{self.root}/*/{self.marker}")
        return {PurePosixPath(marker).parent.name for marker in markers}

    def put(self, folder: Path) -> None:
        """Copy a local folder to the address; every rank calls it.

        Raises MirrorError on all ranks where one failed.
        """
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        mine = _share(file for file in files if file.name != self.marker)
        _together(lambda: self._put(folder, mine))
        marker = [folder / self.marker] if ranks.rank() == 0 else []
        _together(lambda: self._put(folder, marker))

    def _put(self, folder: Path, files: Iterable[Path]) -> None:
        for file in files:
            target = f"{self.root}/{folder.name}/{file.relative_to(folder).as_posix()}"
            self.files.makedirs(target.rpartition("/")[0], exist_ok=True)
            self.files.put_file(str(file), target)

    def fetch(self, folder: Path) -> None:
        """Copy the folder of that name from the address; every rank calls it."""
        there = f"{self.root}/{folder.name}"
        found = [PurePosixPath(file).relative_to(there) for file in self.files.find(there)]
        for name in _share(name for name in found if name.name != self.marker):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            self.files.get_file(f"{there}/{name}", str(folder / name))
        ranks.barrier()
        if ranks.rank() == 0:
            self.files.get_file(f"{there}/{self.marker}", str(folder / self.marker))
        ranks.barrier()

    def prune(self, keep: int, spared: Collection[str]) -> None:
        """Delete all folders but the `keep` newest and the spared ones; every rank calls it.

        Raises MirrorError on all ranks where the deletion failed.
        """
        _together(lambda: self._prune(keep, spared) if ranks.rank() == 0 else None)

    def _prune(self, keep: int, spared: Collection[str]) -> None:
        for name in sorted(self.names())[:-keep]:
            if name not in spared:
                # The marker goes first: a folder that is left half deleted does not count.
                self.files.rm(f"{self.root}/{name}/{self.marker}")
                self.files.rm(f"{self.root}/{name}", recursive=True)


def _together(action: Callable[[], None]) -> None:
    """Let every rank act; raise MirrorError on all where one failed."""
    failure = ""
    try:
        action()
    except Exception as error:  # file systems raise errors of their own; no rank may go on alone
        failure = f"{type(error).__name__}: {error}"
    if failures := [found for found in ranks.of_all(failure) if found]:
        raise MirrorError(failures[0])


def _share(things: Iterable[T]) -> Sequence[T]:
    """Return every n-th thing for this rank of n; together the ranks have all."""
    return list(things)[ranks.rank() :: ranks.world_size()]
