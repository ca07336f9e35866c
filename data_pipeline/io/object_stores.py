"""Where files are: local folders and object stores behind one small interface."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from io import TextIOWrapper
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pyarrow as pa

from magicdistill.data_pipeline.io.arrow import pc
from magicdistill.data_pipeline.io.listings import Listing, kept_listing
from magicdistill.data_pipeline.io.user_files import BINARY_BYTES, demand_text
from magicdistill.models.paths import OBJECT_STORES, PathError, local_path

(REMOTE,) = OBJECT_STORES
"""Scheme of the addresses in an object store; everything else is a local path."""
PARQUET = b"PAR1"
"""First bytes of a Parquet file."""
PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
"""Codecs of compressed files by their first bytes."""


def is_remote(location: str) -> bool:
    """Tell an address of an object store from a local path."""
    return location.startswith(f"{REMOTE}://")


def filesystem() -> Any:
    """Return the object store that the environment's AWS variables describe."""
    import fsspec  # slow to import: only where a store is remote

    return fsspec.filesystem(REMOTE, **store_options())


def store_options() -> dict[str, Any]:
    """Return options of s3fs.

    Requests that are throttled or broken off are repeated with growing pauses, up to
    `AWS_MAX_ATTEMPTS` times in all, by default 8.
    """
    attempts = int(os.environ.get("AWS_MAX_ATTEMPTS", "8"))
    retries = {"mode": "adaptive", "total_max_attempts": attempts}
    return {"config_kwargs": {"retries": retries}}


def open_text(location: str) -> TextIOWrapper:
    """Open a manifest, which is UTF-8 with or without a byte order mark.

    It is fetched as it is read, never whole, because it may have gigabytes. Bytes that are no
    UTF-8 are replaced, so that they spoil one row and not the reading.

    Raises:
        FileNotFoundError: if there is no such file, naming it.
        PathError: if it is a folder or a binary file, naming it.
    """
    demand_manifest(location, first_bytes(location))
    # Line ends are left alone: the csv module tells those inside a quoted caption from a row's end.
    return TextIOWrapper(open_bytes(location), "utf-8-sig", errors="replace", newline="")


def first_bytes(location: str) -> bytes:
    """Return the beginning of a file's content; raises what `open_bytes` does."""
    with open_bytes(location) as file:
        return file.read(BINARY_BYTES)


def demand_manifest(location: str, beginning: bytes) -> None:
    """Raise PathError where a file begins as no text in UTF-8 does.

    A stray null byte makes no file binary; of UTF-16 half are some.
    """
    if beginning.count(b"\0") > len(beginning) // 4:
        demand_text(location, beginning)


def open_bytes(location: str) -> Any:
    """Open a manifest for reading its bytes in order, unpacked if it is packed.

    Raises:
        FileNotFoundError: if there is no such file, naming it.
        PathError: if it is a folder, naming it.
    """
    try:
        raw = filesystem().open(location) if is_remote(location) else open_local(location)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"manifest {location} does not exist") from error
    except IsADirectoryError as error:
        raise PathError(location, "a folder; give the manifest in it") from error
    magic = raw.read(4)
    raw.seek(0)
    for beginning, codec in PACKED.items():
        if magic.startswith(beginning):
            return pa.CompressedInputStream(pa.PythonFile(raw, "r"), codec)
    return raw


def open_local(location: str) -> Any:
    """Open a local file for reading bytes."""
    return Path(local_path(location)).open("rb")


def read_json(location: str) -> Any:
    """Return what a JSON file holds.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not JSON, naming it.
    """
    with open_text(location) as file:
        try:
            return _parsed(file.read())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{location} is not JSON: {error}") from error


def read_json_lines(location: str) -> Iterator[Any]:
    """Yield what the lines of a file hold, in order; empty lines are skipped.

    A line that is no JSON yields None, so that the caller can report it and read on.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    with open_text(location) as file:
        for line in file:
            if line.strip():
                yield parsed_json(line)


def parsed_json(line: str) -> Any:
    """Return what a line of JSON holds, None where it is none; null bytes in it are left out."""
    try:
        return _parsed(line.replace("\0", ""))
    except (ValueError, RecursionError):
        return None


def _parsed(text: str) -> Any:
    """Return what a JSON text holds, with `?` for each lone surrogate.

    JSON can escape one half of a UTF-16 pair, and Python takes it, but UTF-8 cannot store it.
    """
    content = json.loads(text, parse_int=_number)
    if "\\ud" in text or "\\uD" in text:
        whole = json.dumps(content, ensure_ascii=False).encode(errors="replace")
        content = json.loads(whole)
    return content


def _number(digits: str) -> int | float:
    """Return an integer, or infinity where it has so many digits that no float could hold it.

    Python itself refuses integers of more than 4300 digits, and the whole line with them; an
    infinite number is reported as the one bad value that it is.
    """
    return int(digits) if len(digits) < 300 else float(digits)


class Folder:
    """A local folder or a prefix of an object store; tells what is there without opening it."""

    def __init__(self, location: str, listings: Path | None = None, max_age_h: float = 0.0) -> None:
        """Take a location.

        Args:
            location: a local path, or an address of an object store.
            listings: folder that listings of object stores are kept in; None keeps none.
            max_age_h: hours for which a kept listing is used again.

        Raises:
            FileNotFoundError: if a local folder does not exist.
        """
        self.remote = is_remote(location)
        self.location = location.rstrip("/")
        self._listings, self._max_age_h = listings, max_age_h
        self._asked: dict[str, str | None] | None = {}
        # No cached property: before Python 3.12 those of all instances share one lock.
        self._prepared: Listing | None = None
        if not self.remote:
            self._path = Path(local_path(location)).absolute()
            if not self._path.is_dir():
                raise FileNotFoundError(f"data source folder {self._path} does not exist")
            self._uri = self._path.as_uri().rstrip("/")

    def uri(self, name: str) -> str:
        """Return the address of a file by its path below the folder."""
        return f"{self.location}/{name}" if self.remote else f"{self._uri}/{quote(name)}"

    def path(self, name: str) -> str:
        """Return the local path of a file, empty where the folder is remote."""
        return "" if self.remote else os.path.join(self._path, name)

    def state(self, name: str) -> str | None:
        """Return a text that changes when a file is replaced; None if there is no such file.

        It is size and time of a local file, size and ETag of an object: no file is read for it.
        """
        state = self._states.get(name) if self.remote else self._local_state(name)
        if self._asked is not None:
            self._asked[name] = state
        return state

    def _local_state(self, name: str) -> str | None:
        return local_state(os.path.join(self._path, name))

    def uris(self, names: pa.Array) -> pa.Array:
        """Return the addresses of files, as `uri` does."""
        if self.remote:
            return pc.binary_join_element_wise(self.location, names, "/")
        plain = pc.match_substring_regex(names, r"^[A-Za-z0-9_.~/-]*$")
        if not pc.all(plain).as_py():
            special = pc.invert(plain)
            quoted = pa.array(map(quote, names.filter(special).to_pylist()), pa.string())
            names = pc.replace_with_mask(names, special, quoted)
        return pc.binary_join_element_wise(self._uri, names, "/")

    def paths(self, names: pa.Array) -> pa.Array:
        """Return the local paths of files, as `path` does."""
        if self.remote:
            return pa.repeat("", len(names))
        return pc.binary_join_element_wise(os.path.join(self._path, ""), names, "")

    def states(self, names: pa.Array) -> pa.Array:
        """Return the states of files, as `state` does; null for a name that is null."""
        if self.remote:
            states = self._listing.states(names)
        else:
            found = (
                None if name is None else self._local_state(name) for name in names.to_pylist()
            )
            states = pa.array(found, pa.string())
        if self._asked is not None:
            self._asked.update(zip(names.to_pylist(), states.to_pylist(), strict=True))
        return states

    def take_asked(self) -> Mapping[str, str | None] | None:
        """Return the states that were asked for since the last call, by name; None if somebody has
        asked for all names."""
        asked, self._asked = self._asked, {}
        return asked

    def names(self) -> Iterator[str]:
        """Yield the paths of all files below the folder, sorted, without hidden ones (`.name`).

        Bytes of a name that are no UTF-8 are replaced. No file has that name, so that it is
        reported as missing and breaks nothing.
        """
        self._asked = None
        found = self._listing.names() if self.remote else iter(sorted(self._local_names()))
        return (name for name in found if not name.rpartition("/")[2].startswith("."))

    def _local_names(self) -> Iterator[str]:
        for path in self._path.rglob("*"):
            if not os.path.isdir(path):
                name = os.fsencode(path.relative_to(self._path).as_posix())
                yield name.decode(errors="replace")

    def fingerprint(self) -> str:
        """Return a text that changes where any file is added, removed or replaced.

        A local folder is walked for it, with one look at each file.
        """
        if self.remote:
            return self._listing.fingerprint()
        found = hashlib.blake2b(digest_size=16)
        for line in _states_below(str(self._path), {os.path.realpath(self._path)}):
            found.update(line.encode(errors="surrogateescape"))
        return found.hexdigest()

    def prepare(self) -> None:
        """List a prefix of an object store now; several can be listed side by side."""
        if self.remote and self._prepared is None:
            self._prepared = kept_listing(
                filesystem(), self.location, self._listings, self._max_age_h
            )

    @property
    def _listing(self) -> Listing:
        """All files of a prefix, from a few requests at a time: each file alone would be one."""
        self.prepare()
        assert self._prepared is not None
        return self._prepared

    @cached_property
    def _states(self) -> Mapping[str, str]:
        """States of all files by name, for those who ask one by one."""
        names = [*self._listing.names()]
        return dict(zip(names, self._listing.states(pa.array(names)).to_pylist(), strict=True))


def _states_below(folder: str, above: set[str]) -> Iterator[str]:
    """Yield a line for everything below a folder, links followed unless they lead into a circle.

    Of a folder that cannot be read nothing is known, so that it yields another line each time.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        yield f"{folder} {uuid4()}\n"
        return
    for entry in entries:
        yield f"{entry.path} {local_state(entry.path)}\n"
        if entry.is_dir():
            own = os.path.realpath(entry.path)
            if own not in above:
                yield from _states_below(entry.path, above | {own})


def file_state(location: str) -> str | None:
    """Return a text that changes when a file is replaced; None without one."""
    if not is_remote(location):
        return local_state(local_path(location))
    try:
        facts = filesystem().info(location, refresh=True)
    except FileNotFoundError:
        return None
    return f"{facts['size']}-{facts.get('ETag')}"


def local_state(path: Path | str) -> str | None:
    """Return size and time of a local file, which change when it is replaced; None without one."""
    try:
        state = os.stat(path)
    except (OSError, UnicodeError):  # also a name that no file can have
        return None
    return f"{state.st_size}-{state.st_mtime_ns}"
