"""Folders on the local disk or in an object store; their files appear whole or not at all.

A local file is written under a temporary name and renamed. An object is one PUT, or an upload of
several parts, and neither is visible before it is complete.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from filelock import FileLock
from upath import UPath

from magicdistill.data_pipeline.io.object_stores import is_remote, store_options
from magicdistill.data_pipeline.io.whole_files import write_whole
from magicdistill.models.paths import local_path

AnyPath = Path | UPath
COPIES = f"magicdistill-copies-{os.getuid()}"
SPARE_BYTES = 1 << 30
"""Disk space in bytes that copies must leave free; on larger disks it is a tenth of the disk."""
MAX_REQUESTS = 16
"""Number of objects that one process requests at the same time."""
WHOLE_BYTES = 32 << 20
"""An object of at most this size is fetched whole; of a larger one only the rows that are read."""


def place(location: AnyPath | str) -> AnyPath:
    """Return an absolute local path, or the object store's where `location` is s3://bucket/prefix.

    Raises PathError for an address of anything else.
    """
    if isinstance(location, str) and is_remote(location):
        return UPath(location, use_listings_cache=False, **store_options())
    if isinstance(location, str | Path):
        return Path(local_path(location)).absolute()
    return location


def local_folder(root: AnyPath) -> Path:
    """Return a local folder for files that can be made again: `root` itself if it is local."""
    return root if isinstance(root, Path) else _copy_of(root)


def write_parquet(table: pa.Table, path: AnyPath, **options: Any) -> None:
    """Write a table with checksums, whole or not at all."""
    options["write_page_checksum"] = True
    write_whole(path, lambda temporary: pq.write_table(table, temporary, **options))


def write_batches(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, path: AnyPath, **options: Any
) -> None:
    """Write batches, as they come, as one table with checksums, whole or not at all."""
    options["write_page_checksum"] = True

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, schema, **options) as file:
            for batch in batches:
                file.write_batch(batch.cast(schema))

    write_whole(path, write)


def remove(path: AnyPath) -> None:
    """Remove a file if it exists."""
    if isinstance(path, Path):
        path.unlink(missing_ok=True)
    else:
        path.fs.rm_file(path.path)  # UPath.unlink sends a bulk request and ignores its errors


def remove_copies(folder: AnyPath) -> None:
    """Remove this machine's copies of the tables below a folder of an object store."""
    if not isinstance(folder, Path):
        for copy in _copy_of(folder).rglob("*.parquet"):
            copy.unlink(missing_ok=True)


def list_files(folder: AnyPath, pattern: str) -> list[AnyPath]:
    """Return the files below a folder whose relative path matches a glob, sorted.

    Raises:
        OSError: if an object store cannot be listed; its globs would return nothing.
    """
    if isinstance(folder, Path):
        return sorted(path for path in folder.glob(pattern) if path.is_file())
    return [*_objects(folder, pattern)]


def list_sizes(folder: AnyPath, pattern: str) -> dict[AnyPath, int]:
    """Return the files of `list_files` with their sizes in bytes."""
    if isinstance(folder, Path):
        return {path: path.stat().st_size for path in list_files(folder, pattern)}
    return _objects(folder, pattern)


def _objects(folder: UPath, pattern: str) -> dict[AnyPath, int]:
    found: Any = folder.fs.find(folder.path, detail=True)
    sizes = {path.removeprefix(folder.path).lstrip("/"): found[path]["size"] for path in found}
    depth = pattern.count("/")
    return {
        folder / name: sizes[name]
        for name in sorted(sizes)
        if name.count("/") == depth and fnmatchcase(name, pattern)
    }


def read_tables(folder: AnyPath, pattern: str, schema: pa.Schema) -> pa.Table:
    """Return the rows of all Parquet files of a folder, in the order of the files' names."""
    return read_files(list_files(folder, pattern), schema)


def read_files(paths: Sequence[AnyPath], schema: pa.Schema, *, checked: bool = False) -> pa.Table:
    """Return the rows of a folder's Parquet files, in order.

    Raises:
        OSError: if `checked` and a file does not match its checksums.
    """
    objects = [path for path in paths if isinstance(path, UPath)]
    if not objects:
        options = pyarrow.dataset.ParquetFragmentScanOptions(page_checksum_verification=checked)
        kind = pyarrow.dataset.ParquetFileFormat(default_fragment_scan_options=options)
        return pyarrow.dataset.dataset(list(paths), schema=schema, format=kind).to_table()
    names = [path.path for path in objects]
    found: Any = objects[0].fs.cat(names, batch_size=MAX_REQUESTS)
    tables = [
        pq.read_table(
            pa.BufferReader(found[name]), schema=schema, page_checksum_verification=checked
        )
        for name in names
    ]
    return pa.concat_tables(tables)


def read_table(path: AnyPath, schema: pa.Schema) -> pa.Table:
    """Return the rows of one Parquet file."""
    return pq.read_table(local_copy(path), schema=schema)


def open_parquet(path: AnyPath) -> pq.ParquetFile:
    """Open a Parquet file for random reads of row groups.

    Of a large object the footer is fetched now and each row group, in one request, when it is
    read. A small object, or one with a copy on this machine, is read as a local file.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    if isinstance(path, Path):
        return pq.ParquetFile(path)
    facts = path.fs.info(path.path, refresh=True)
    if facts["size"] <= WHOLE_BYTES or _copy_of_object(path, facts).exists():
        return pq.ParquetFile(local_copy(path))
    file = path.fs.open(path.path, cache_type="none")
    return pq.ParquetFile(
        file, pre_buffer=True
    )  # without it, each column of a row group is a request


def local_copy(path: AnyPath) -> Path:
    """Return a local file of the same content: the file itself, or a copy of the object.

    Copies are in the temporary folder (`TMPDIR`) and are shared by the processes of a machine.
    When space runs out, the least recently used ones are removed.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    if isinstance(path, Path):
        return path
    facts = path.fs.info(path.path, refresh=True)
    copy = _copy_of_object(path, facts)
    copy.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(copy.with_name(f".{copy.name}.lock")):
        if not _is_there(copy):
            _make_room(facts["size"])
            temporary = copy.with_name(f".{copy.name}.tmp")
            path.fs.get_file(path.path, str(temporary))
            num_bytes = temporary.stat().st_size
            if num_bytes != facts["size"]:
                raise OSError(errno.EIO, f"{num_bytes} of {facts['size']} bytes came", str(path))
            os.replace(temporary, copy)
    return copy


def _is_there(copy: Path) -> bool:
    """Tell whether a copy exists; if so, mark it as the most recently used one."""
    try:
        os.utime(copy)
    except FileNotFoundError:
        return False
    return True


def _copy_of(path: UPath) -> Path:
    return Path(tempfile.gettempdir()) / COPIES / path.path


def _copy_of_object(path: UPath, facts: Mapping[str, Any]) -> Path:
    state = facts["ETag"].strip(
        '"'
    )  # a replaced object has another ETag, so its old copy is not used
    return _copy_of(path.parent) / f"{state}-{path.name}"


def _make_room(num_bytes: int) -> None:
    """Remove the least recently used copies until `num_bytes` and the spare space fit.

    Raises:
        OSError: ENOSPC, if they do not fit even without copies.
    """
    folder = Path(tempfile.gettempdir()) / COPIES
    spare = max(SPARE_BYTES, shutil.disk_usage(folder).total // 10)
    with FileLock(folder / ".lock"):
        asked = {copy: _asked_at(copy) for copy in folder.rglob("[!.]*.parquet")}
        for copy in sorted(asked, key=asked.__getitem__):
            if shutil.disk_usage(folder).free >= num_bytes + spare:
                return
            if _asked_at(copy) == asked[copy]:
                copy.unlink(missing_ok=True)
        if shutil.disk_usage(folder).free < num_bytes + spare:
            reason = f"no room for {num_bytes} bytes and {spare} to spare; set TMPDIR elsewhere"
            raise OSError(errno.ENOSPC, reason, str(folder))


def _asked_at(copy: Path) -> float:
    """Return when a copy was last used, in seconds since 1970; 0 if it was removed meanwhile."""
    try:
        return copy.stat().st_mtime
    except FileNotFoundError:
        return 0.0
