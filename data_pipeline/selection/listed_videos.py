"""The videos that sources list, as tables on the disk."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict, runtime_checkable

import numpy as np
import pyarrow as pa

from magicdistill.data_pipeline.captioning.captions import CAPTION
from magicdistill.data_pipeline.captioning.text_measures import MEASURES, measure
from magicdistill.data_pipeline.io.arrow import of_texts, pc, pq
from magicdistill.data_pipeline.io.kept_tables import KeptFolder, link_files
from magicdistill.data_pipeline.io.query import ROWS_PER_GROUP, Database, text
from magicdistill.data_pipeline.io.storage import write_parquet
from magicdistill.data_pipeline.ledger.columns import IMPORTED, SLICE, imported_column, slice_of
from magicdistill.data_pipeline.ledger.takedowns import REASON, Takedowns
from magicdistill.data_pipeline.rows import VIDEO_SCHEMA, digest
from magicdistill.data_pipeline.sources.listing import Seen

SUFFIX = ".table"
"""End of the files' names: where copies of objects are removed to make room, `.parquet` goes."""
FILE_ROWS = 500_000
"""Videos in one file."""
SEEN, ASKED_OF = "seen.npy", "asked"
"""Files of a group: hashes of the ids of its videos, and what was asked of folders."""
MAX_SMALL = 32
"""With more groups below FILE_ROWS at the end of a listing than these, they become one."""
DECIDING = (
    *("ordinal", "video_id", "source_id", "uri", "fingerprint", "mixture", "time_scale"),
    "fault",
)
"""Columns of the listing that decisions ask for, beside the imported scores."""
REPEATED = ("source_id", "uri", "path", "license", "mixture", "fault", "imported_scores.key")
"""Columns in which videos that follow each other in the listing have few different values."""


class ListedVideos:
    """All videos of a config's sources, also those that cannot be used, as Parquet files.

    Some files have all columns of `Video` and `ordinal`, which counts the videos: those of a file
    follow each other in the listing. Others have what decisions ask for, with a column for each
    imported score, and are sorted by slice.
    """

    def __init__(self, database: Database, folder: KeptFolder) -> None:
        """Take the folder that `write_listing` has filled."""
        self._db, self._held = database, folder
        self.groups: Sequence[Group] = folder.facts["groups"]
        """What was listed together."""
        self._files = sorted(folder.path.glob(f"*/[0-9]*{SUFFIX}"))
        self._sorted = sorted(folder.path.glob(f"*/sorted-*{SUFFIX}"))
        self.sql = database.files(self._sorted)
        """The table of all videos with the columns of DECIDING, `imported.…` and `slice`."""
        self.num_videos = sum(sum(group["counts"]) for group in self.groups)
        self.imported = [c for c in database.columns(self.sql) if c.startswith(IMPORTED)]
        """The columns of imported scores, as `imported_column` names them."""

    @property
    def ranges(self) -> Iterator[tuple[str, str]]:
        """Tables of the videos, and the conditions on `ordinal` that select those of each."""
        first = 0
        counts = (count for group in self.groups for count in group["counts"])
        for file, count in zip(self._files, counts, strict=True):
            yield self._db.files([file]), f"ordinal BETWEEN {first} AND {first + count - 1}"
            first += count

    @property
    def whole(self) -> str:
        """The table of all videos with all columns."""
        return self._db.files(self._files)

    def split(self, num_groups: int) -> tuple[str, str]:
        """Return the tables, as `sql`, of the first groups and of the others; empty if there are
        none."""
        num_files = sum(len(group["counts"]) for group in self.groups[:num_groups])
        parts = self._sorted[:num_files], self._sorted[num_files:]
        first, others = (self._db.files(files) if files else "" for files in parts)
        return first, others

    def faults(self) -> Mapping[str, Mapping[str, int]]:
        """Return the number of videos that cannot be used, by data set and reason."""
        found: dict[str, dict[str, int]] = {}
        for dataset, reason, count, _ in self._db.rows(
            "SELECT split_part(source_id, '/', 1) AS dataset, split_part(fault, ':', 1) AS reason, "
            f"count(*), min(ordinal) AS first FROM {self.sql} WHERE fault <> '' "
            "GROUP BY dataset, reason ORDER BY first"
        ):
            found.setdefault(dataset, {})[reason] = count
        return found


@runtime_checkable
class Lister(Protocol):
    """What lists videos in parts: see `SourceLister`."""

    @property
    def key(self) -> str | None:
        """What all that is listed is kept by."""
        ...

    @property
    def keys(self) -> Sequence[str | None]:
        """Of each part what it is kept by."""
        ...

    def tables(self, number: int, seen: Seen) -> Iterator[pa.Table]:
        """Yield the videos of a part that were not seen yet."""
        ...

    def take_asked(self) -> pa.Table:
        """Return what parts have asked of folders since the last call."""
        ...

    def holds(self, asked: pa.Table) -> bool:
        """Tell whether folders answer the same now."""
        ...


class Group(TypedDict):
    """Parts that were listed one after the other, whose files are in a folder of their own."""

    keys: Sequence[str | None]
    """Of each part what it is kept by."""
    first: int
    """The ordinal of the first video."""
    counts: Sequence[int]
    """Numbers of videos in the files."""
    digest: str
    """Changes with the columns that decisions ask for."""


def write_listing(
    database: Database,
    folder: Path,
    lister: Lister,
    takedowns: Takedowns,
    before: KeptFolder | None = None,
    *,
    with_captions: bool = False,
) -> Mapping[str, Any]:
    """Write the files; of videos that were taken down only their names and the reason are left.

    Args:
        database: what asks.
        folder: the folder of the files.
        lister: lists the videos.
        takedowns: the films that must not be used.
        before: an earlier listing: what it begins with, and would be listed the same, is not
            listed again.
        with_captions: whether the captions are measured, as scores that the listing has.

    Returns:
        What `ListedVideos` has to know: the groups.
    """
    settings = digest(takedowns.sources, with_captions)
    keys = [key and digest(key, settings) for key in lister.keys]
    seen, groups = Seen(), _unchanged(before, keys, lister) if before else []
    for number in range(len(groups)):
        assert before is not None
        link_files(before.path / _name(number), folder / _name(number))
        seen.know(np.load(folder / _name(number) / SEEN, mmap_mode="r"))
    start = sum(len(group["keys"]) for group in groups)
    lister.take_asked()
    while start < len(keys) or not groups:
        place = folder / _name(len(groups))
        place.mkdir()
        first = groups[-1]["first"] + sum(groups[-1]["counts"]) if groups else 0
        stop, counts, found = start, [], hashlib.blake2b(digest_size=16)

        def parts() -> Iterator[pa.Table]:
            nonlocal stop
            num_videos = 0
            while stop < len(keys) and num_videos < FILE_ROWS:
                for table in lister.tables(stop, seen):
                    num_videos += len(table)
                    yield table
                stop += 1

        for rows in _gathered(parts()):
            ordinals = np.arange(first, first + len(rows)) + sum(counts)
            rows = rows.append_column("ordinal", pa.array(ordinals, pa.int64()))
            file = place / f"{len(counts):05d}{SUFFIX}"
            found.update(_write_file(file, _marked(database, rows, takedowns), with_captions))
            counts.append(len(rows))
        np.save(place / SEEN, seen.take())
        pq.write_table(lister.take_asked(), place / ASKED_OF)
        groups.append(
            Group(keys=keys[start:stop], first=first, counts=counts, digest=found.hexdigest())
        )
        start = stop
    return {"groups": groups, "digest": digest(*(group["digest"] for group in groups))}


def _name(group: int) -> str:
    return f"group-{group:05d}"


def _unchanged(before: KeptFolder, keys: Sequence[str | None], lister: Lister) -> list[Group]:
    """Return the groups at the beginning of an earlier listing that would be listed the same.

    Small ones at its end are left out where there are many, so that they become one.
    """
    found: list[Group] = []
    start = 0
    for number, group in enumerate(before.facts["groups"]):
        stop = start + len(group["keys"])
        if None in group["keys"] or [*keys[start:stop]] != group["keys"]:
            break
        if not lister.holds(pq.read_table(before.path / _name(number) / ASKED_OF)):
            break
        found.append(group)
        start = stop
    small = 0
    while small < len(found) and sum(found[-1 - small]["counts"]) < FILE_ROWS:
        small += 1
    return found[: len(found) - small] if small > MAX_SMALL else found


def _write_file(file: Path, rows: pa.Table, with_captions: bool) -> bytes:
    """Write videos as a file with all columns, and beside it one with those that decisions ask
    for; return what is in that one."""
    _write(rows, file, REPEATED, "ordinal")
    slices = of_texts(slice_of("text"), rows["video_id"].combine_chunks())
    columns = rows.select(DECIDING).append_column(SLICE, slices)
    for key, values in _wide(rows["imported_scores"].combine_chunks()).items():
        columns = columns.append_column(imported_column(key), values)
    for key, values in _measured(rows["caption"]).items() if with_captions else ():
        columns = columns.append_column(imported_column(key), values)
    by_slice = np.argsort(slices.to_numpy(), kind="stable")
    deciding = file.with_name(f"sorted-{file.name}")
    _write(columns.take(by_slice), deciding, ("mixture", "fault"), SLICE)
    return deciding.read_bytes()


def _marked(database: Database, rows: pa.Table, takedowns: Takedowns) -> pa.Table:
    """Return videos, of those that were taken down only their names and the reason."""
    films = pa.table({"source_id": [*takedowns.sources], "day": [*takedowns.sources.values()]})
    if not films.num_rows or not pc.any(pc.is_in(rows["source_id"], films["source_id"])).as_py():
        return rows
    reason = f"concat({text(f'{REASON}: on ')}, day)"
    marked = (
        f"SELECT v.* REPLACE (CASE WHEN day IS NULL THEN fault ELSE {reason} END AS fault, "
        f"CASE WHEN day IS NULL THEN fingerprint ELSE concat('fault ', {reason}) END "
        "AS fingerprint, CASE WHEN day IS NULL THEN caption ELSE '' END AS caption, "
        "CASE WHEN day IS NULL THEN imported_scores ELSE MAP {} END AS imported_scores) "
        "FROM listed AS v LEFT JOIN gone USING (source_id) ORDER BY ordinal"
    )
    with database.named(listed=rows, gone=films):
        return database.table(marked).select(rows.column_names).cast(rows.schema)


def _gathered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the same rows in tables of FILE_ROWS, of which the last one may be shorter; of none,
    an empty table."""
    is_empty = True
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        while sum(map(len, held)) >= FILE_ROWS:
            rows = pa.concat_tables(held)
            yield rows.slice(0, FILE_ROWS)
            held, is_empty = [rows.slice(FILE_ROWS)], False
    if is_empty or sum(map(len, held)):
        yield pa.concat_tables([VIDEO_SCHEMA.empty_table(), *held])


def _wide(maps: pa.MapArray) -> dict[str, pa.Array]:
    """Return a column for each key of maps of numbers, null where a map has none."""
    offsets = maps.offsets.to_numpy()
    keys, items = (
        side.slice(offsets[0], offsets[-1] - offsets[0]) for side in (maps.keys, maps.items)
    )
    rows = np.repeat(np.arange(len(maps)), np.diff(offsets))
    keys, items = keys.dictionary_encode(), items.to_numpy(zero_copy_only=False)
    columns: dict[str, pa.Array] = {}
    for number, key in enumerate(keys.dictionary.to_pylist()):
        own = keys.indices.to_numpy() == number
        values, is_absent = np.zeros(len(maps)), np.ones(len(maps), bool)
        values[rows[own]], is_absent[rows[own]] = items[own], False
        columns[key] = pa.array(values, mask=is_absent)
    return columns


def _measured(captions: pa.ChunkedArray) -> dict[str, pa.Array]:
    """Return a column for each measure of captions, null where there is no caption."""
    found = [measure(caption) if caption else {} for caption in captions.to_pylist()]
    return {
        f"{CAPTION}.{key}": pa.array([values.get(key) for values in found], pa.float64())
        for key in MEASURES
    }


def _write(rows: pa.Table, path: Path, repeated: Sequence[str], ordered_by: str) -> None:
    """Write a table, which takes DuckDB three times as long where columns hold maps or lists.

    Args:
        rows: the table.
        path: the file.
        repeated: columns whose different values are written once for each row group.
        ordered_by: the column by which a reader may skip row groups.
    """
    write_parquet(
        rows,
        path,
        row_group_size=ROWS_PER_GROUP,
        use_dictionary=[*repeated],
        write_statistics=[ordered_by],
        compression="zstd",
        compression_level=1,
    )
