"""Files that are written whole or not at all, on the local disk or in an object store.

Apart from `storage.py`, whose packages take a second to import: every command line reads and writes
the small files of runs.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

PART_BYTES = 16 << 20
"""An object from twice this size on is uploaded in parts."""


@runtime_checkable
class ObjectPath(Protocol):
    """A file of an object store: a UPath."""

    @property
    def name(self) -> str:
        """Its last part."""
        ...

    @property
    def path(self) -> str:
        """Its address within the store."""
        ...

    @property
    def fs(self) -> Any:
        """The store, as fsspec has it."""
        ...


def write_text(path: Path | ObjectPath, text: str) -> None:
    """Write a text in UTF-8, whole or not at all, also where the power fails."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # or the name may be on the disk before the text is

    write_whole(path, write)


def write_whole(path: Path | ObjectPath, write: Callable[[Path], object]) -> None:
    """Let `write` make a local file, then put it in its place; folders are made at need."""
    if isinstance(path, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            write(temporary)
            os.replace(temporary, path)
        except BaseException as error:
            temporary.unlink(missing_ok=True)  # on a full disk above all
            if isinstance(error, OSError) and error.errno:
                raise OSError(error.errno, error.strerror, str(path)) from error
            raise
        return
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / path.name
        write(temporary)
        path.fs.put_file(str(temporary), path.path, chunksize=PART_BYTES)


@contextmanager
def without_leftovers(paths: Sequence[Path]) -> Iterator[None]:
    """Where the body is stopped, remove what other processes had begun to write in these places.

    Those processes must have ended with the body.
    """
    try:
        yield
    except BaseException:
        for path in paths:
            for begun in path.parent.glob(f".{escape(path.name)}.*.tmp"):
                begun.unlink(missing_ok=True)
        raise
