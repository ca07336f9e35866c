"""Copies of checkpoints at an address, such as a bucket of S3."""

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from magicdistill.platform import ranks

T = TypeVar("T")


class Mirror:
    """Checkpoint folders below an address of fsspec: `s3://bucket/prefix` or a path.

    The marker, a file of each folder, is copied last: a folder without it does not count. The
    ranks share the files. Credentials and endpoint are the environment's (AWS_ENDPOINT_URL).
    """

    def __init__(self, address: str, marker: str) -> None:
        from fsspec.core import url_to_fs

        self.marker = marker
        self.files: Any
        self.files, self.root = url_to_fs(address, use_listings_cache=False)

    def names(self) -> set[str]:
        """Return the complete folders."""
        markers = self.files.glob(f"{self.root}/*/{self.marker}")
        return {PurePosixPath(marker).parent.name for marker in markers}

    def put(self, folder: Path) -> None:
        """Copy a local folder to the address; every rank calls it."""
        there = f"{self.root}/{folder.name}"
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        for file in _share(file for file in files if file.name != self.marker):
            target = f"{there}/{file.relative_to(folder).as_posix()}"
            self.files.makedirs(target.rpartition("/")[0], exist_ok=True)
            self.files.put_file(str(file), target)
        ranks.barrier()
        if ranks.rank() == 0:
            self.files.put_file(str(folder / self.marker), f"{there}/{self.marker}")

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

    def unmark(self, name: str) -> None:
        """Let a folder count no more, if it is there."""
        self.remove(f"{name}/{self.marker}")

    def remove(self, name: str) -> None:
        """Delete a folder or a file, if it is there."""
        if self.files.exists(f"{self.root}/{name}"):
            self.files.rm(f"{self.root}/{name}", recursive=True)


def _share(things: Iterable[T]) -> Sequence[T]:
    return list(things)[ranks.rank() :: ranks.world_size()]
