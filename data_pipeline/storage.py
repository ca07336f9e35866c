"""Folders on the local disk or in an object store; their files appear whole or not at all.

A local file is written under a temporary name and renamed. An object is one PUT, or an upload of
several parts, and neither is visible before it is complete.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from filelock import FileLock
from upath import UPath

from magicdistill.data_pipeline.sources.stores import is_remote, store_options

AnyPath = Path | UPath
COPIES = "magicdistill-copies"
SPARE_BYTES = 1 << 30
"""Disk space that copies have to leave free."""
MAX_REQUESTS = 16
"""Objects that one process asks for at once."""
PART_BYTES = 16 << 20
"""An object from twice this size on is uploaded in parts."""


def place(location: AnyPath | str) -> AnyPath:
    """Return an absolute local path, or the object store's where `location` is s3://bucket/prefix."""
    if isinstance(location, str) and is_remote(location):
        return UPath(location, use_listings_cache=False, **store_options())
    if isinstance(location, str | Path):
        return Path(location).expanduser().absolute()
    return location


def local_folder(root: AnyPath) -> Path:
    """Return a folder for what is made again at need: `root` itself, where that is local."""
    return root if isinstance(root, Path) else _copy_of(root)


def write_parquet(table: pa.Table, path: AnyPath, **options: Any) -> None:
    """Write a table with checksums, whole or not at all."""
    options["write_page_checksum"] = True
    write_whole(path, lambda temporary: pq.write_table(table, temporary, **options))


def write_text(path: AnyPath, text: str) -> None:
    """Write a text, whole or not at all."""
    write_whole(path, lambda temporary: temporary.write_text(text))


def write_whole(path: AnyPath, write: Callable[[Path], object]) -> None:
    """Let `write` make a local file, then put it in its place; folders are made at need."""
    if isinstance(path, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        write(temporary)
        os.replace(temporary, path)
        return
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / path.name
        write(temporary)
        path.fs.put_file(str(temporary), path.path, chunksize=PART_BYTES)


def read_tables(folder: AnyPath, pattern: str, schema: pa.Schema) -> pa.Table:
    """Return the rows of all Parquet files of a folder, in the order of the files' names."""
    if isinstance(folder, Path):
        parts = sorted(folder.glob(pattern))
        return pyarrow.dataset.dataset(parts, schema=schema, format="parquet").to_table()
    paths = sorted(part.path for part in folder.glob(pattern))
    found: Any = folder.fs.cat(paths, batch_size=MAX_REQUESTS) if paths else {}
    tables = [pq.read_table(pa.BufferReader(found[path]), schema=schema) for path in paths]
    return pa.concat_tables([schema.empty_table(), *tables])


def read_table(path: AnyPath, schema: pa.Schema) -> pa.Table:
    """Return the rows of one Parquet file."""
    return pq.read_table(local_copy(path), schema=schema)


def local_copy(path: AnyPath) -> Path:
    """Return a local file of the same content: the file itself, or a copy of the object.

    Copies lie under the temporary folder (`TMPDIR`) and are shared by the processes of a machine;
    when space runs out, those that were asked for longest ago go.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    if isinstance(path, Path):
        return path
    facts = path.fs.info(path.path, refresh=True)
    state = facts["ETag"].strip('"')  # an object that was replaced is another file
    copy = _copy_of(path.parent) / f"{state}-{path.name}"
    copy.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(copy.with_name(f".{copy.name}.lock")):
        if not copy.exists():
            _make_room(facts["size"])
            temporary = copy.with_name(f".{copy.name}.tmp")
            path.fs.get_file(path.path, str(temporary))
            if temporary.stat().st_size != facts["size"]:
                raise OSError(f"{path}: {temporary.stat().st_size} of {facts['size']} bytes came")
            os.replace(temporary, copy)
        os.utime(copy)
    return copy


def _copy_of(path: UPath) -> Path:
    return Path(tempfile.gettempdir()) / COPIES / path.path


def _make_room(num_bytes: int) -> None:
    """Remove copies until a file of that size fits."""
    folder = Path(tempfile.gettempdir()) / COPIES
    copies = [file for file in folder.rglob("*.parquet") if not file.name.startswith(".")]
    for file in sorted(copies, key=lambda file: file.stat().st_mtime):
        if shutil.disk_usage(folder).free >= num_bytes + SPARE_BYTES:
            return
        file.unlink(missing_ok=True)
    if shutil.disk_usage(folder).free < num_bytes + SPARE_BYTES:
        raise OSError(f"no room for {num_bytes} bytes below {folder}; set TMPDIR to a larger disk")
