"""Listings of object stores: taken by several requests at a time, and kept in files."""

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from magicdistill.data_pipeline.io.arrow import of_texts, pc, pq
from magicdistill.data_pipeline.io.whole_files import write_whole

logger = logging.getLogger(__name__)

MAX_REQUESTS = 16
"""Pages that are asked for at the same time."""
KEYS_PER_PAGE = 1000
"""Objects in one answer of the store: the most that S3 gives."""
LAST = "\U0010ffff"
"""After every other character of a key."""
SCHEMA = pa.schema({"name": pa.large_string(), "state": pa.large_string()})
"""Columns of a listing; all names of millions of files have more bytes than a plain column may."""
Page = tuple[pa.Table, str]
LISTED_AT = b"listed_at"
"""Key in a kept listing's metadata of the time at which it was begun, in seconds since 1970."""


class Listing:
    """The files below a prefix: their names and states, sorted by name."""

    def __init__(self, table: pa.Table) -> None:
        """Take a table of `SCHEMA`, sorted by name."""
        self._names = table["name"].combine_chunks()
        self._states = table["state"].combine_chunks()

    def names(self) -> Iterator[str]:
        """Yield all names in order."""
        for first in range(0, len(self._names), 50_000):
            yield from self._names.slice(first, 50_000).to_pylist()

    def states(self, names: pa.Array) -> pa.Array:
        """Return the states of files by their names, null where there is none."""
        hashes, order = self._by_hash
        if not len(order):
            return pa.nulls(len(names), pa.string())
        names = names.cast(pa.large_string())
        place = np.searchsorted(hashes, _hashes(names))
        places = pa.array(order[np.minimum(place, len(order) - 1)], pa.int64())
        same = pc.fill_null(pc.equal(self._names.take(places), names), False)
        places = pc.if_else(same, places, None)
        if len(self._shared):  # the name may stand behind another one of its hash
            twins = pc.index_in(names, self._names.take(self._shared), skip_nulls=True)
            places = pc.coalesce(places, self._shared.take(twins))
        return self._states.take(places).cast(pa.string())

    def fingerprint(self) -> str:
        """Return a text that changes with any name or state."""
        found = hashlib.blake2b(digest_size=16)
        for column in (self._names, self._states) if len(self._names) else ():
            _, offsets, content = column.buffers()
            ends = np.frombuffer(offsets, np.int64)[column.offset :][: len(column) + 1]
            found.update(np.diff(ends).tobytes())
            found.update(memoryview(content)[ends[0] : ends[-1]])
        return found.hexdigest()

    @cached_property
    def _by_hash(self) -> tuple[Any, Any]:
        """Hashes of all names in order, and the place of each: looking one up takes no table."""
        hashes = _hashes(self._names)
        order = np.argsort(hashes, kind="stable")
        return hashes[order], order

    @cached_property
    def _shared(self) -> pa.Array:
        """Places of the names that have a hash in common with another one."""
        hashes, order = self._by_hash
        same = hashes[1:] == hashes[:-1]
        return pa.array(order[np.flatnonzero(np.r_[same, False] | np.r_[False, same])], pa.int64())


def _hashes(names: pa.Array) -> Any:
    """Return 64 bits of each name, 0 of null."""
    hashed = of_texts("coalesce(hash(text), 0)", names)
    return hashed.to_numpy(zero_copy_only=False)


def kept_listing(store: Any, location: str, folder: Path | None, max_age_h: float) -> Listing:
    """Return what is below a prefix, from a file if it is young enough, and keep what is listed.

    Args:
        store: the object store, as s3fs has it.
        location: `s3://bucket/prefix` without a slash at its end.
        folder: where listings are kept, one Parquet file for each store and prefix; None keeps
            none.
        max_age_h: hours for which a kept listing is used; 0 always asks the store.
    """
    if folder is None or max_age_h == 0:
        return Listing(list_prefix(store, location))
    if kept := _read(_place(location, folder), location, max_age_h):
        return kept
    begun = time.time()
    table = list_prefix(store, location)
    try:
        keep_listing(table, location, folder, begun)
    except OSError as error:
        logger.warning("the listing of %s is not kept: %s", location, error)
    return Listing(table)


def keep_listing(table: pa.Table, location: str, folder: Path, begun: float) -> None:
    """Write a table of `SCHEMA` where `kept_listing` finds it.

    Args:
        table: the listing, sorted by name.
        location: what is listed, as in `kept_listing`.
        folder: where listings are kept.
        begun: when the listing was begun, in seconds since 1970.
    """
    stamped = table.replace_schema_metadata({LISTED_AT: str(begun)})
    write_whole(
        _place(location, folder),
        lambda temporary: pq.write_table(stamped, temporary, write_page_checksum=True),
    )


def _place(location: str, folder: Path) -> Path:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    name = hashlib.sha256(f"{endpoint} {location}".encode()).hexdigest()[:20]
    return folder / f"{name}.parquet"


def _read(path: Path, location: str, max_age_h: float) -> Listing | None:
    """Return a kept listing; None if there is none, it is too old or damaged."""
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        age_h = (time.time() - float((table.schema.metadata or {})[LISTED_AT])) / 3600
        if not table.schema.equals(SCHEMA):
            raise ValueError("it has other columns")
    except FileNotFoundError:
        return None
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        logger.warning("the kept listing %s is damaged and taken again: %s", path, error)
        return None
    if not 0 <= age_h < max_age_h:
        return None
    logger.info(
        "listing of %s: as it was %.0f minutes ago (listing_max_age_h)", location, age_h * 60
    )
    return Listing(table)


def list_prefix(store: Any, location: str) -> pa.Table:
    """Return a table of `SCHEMA` of all objects below a prefix, sorted by name.

    A page of a listing says where the next one begins, so that pages of one range of keys follow
    one another. While fewer than `MAX_REQUESTS` are under way, what is left of a range is halved,
    by the character in the middle between the keys at its ends, and both halves are listed.
    """
    bucket, _, prefix = f"{location.partition('://')[2]}/".partition("/")
    pages: dict[str, pa.Table] = {}
    running: dict[Future[Page], tuple[str, str]] = {}
    with ThreadPoolExecutor(MAX_REQUESTS) as pool:

        def ask(after: str, end: str) -> None:
            running[pool.submit(_page, store, bucket, prefix, after, end)] = after, end

        ask("", LAST)
        while running:
            for request in wait(running, return_when=FIRST_COMPLETED).done:
                after, end = running.pop(request)
                pages[after], last = request.result()
                if last:
                    middle = _middle(last, end) if len(running) < MAX_REQUESTS - 1 else ""
                    ask(last, middle or end)
                    if middle:
                        ask(middle, end)
    return pa.concat_tables(pages[after] for after in sorted(pages)).combine_chunks()


def _page(store: Any, bucket: str, prefix: str, after: str, end: str) -> Page:
    """Return the first objects after a name and up to another, and the last name if there are more.

    Objects that stand for folders, whose names end with a slash, are left out.
    """
    options = {"StartAfter": prefix + after} if after else {}
    answer = store.call_s3(
        "list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=KEYS_PER_PAGE, **options
    )
    found = [(item["Key"].removeprefix(prefix), item) for item in answer.get("Contents", ())]
    files = [(name, item) for name, item in found if name <= end and name[-1:] not in ("", "/")]
    states = [f"{item['Size']}-{item['ETag'].strip(chr(34))}" for _, item in files]
    table = pa.table({"name": [name for name, _ in files], "state": states}, schema=SCHEMA)
    last = found[-1][0] if answer["IsTruncated"] else ""
    return table, last if last < end else ""


def _middle(last: str, end: str) -> str:
    """Return a text between two, about half way where the next characters are spread evenly.

    Empty where there is none that differs from the first text in an ASCII character.
    """
    same = next((i for i, (a, b) in enumerate(zip(last, end, strict=False)) if a != b), len(last))
    for place in range(same, len(last)):
        limit = min(ord(end[same]), 0x7F) if place == same else 0x7F
        middle = (ord(last[place]) + limit) // 2
        if middle > ord(last[place]):
            return last[:place] + chr(middle)
    return ""
