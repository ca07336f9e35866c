"""The videos that sources list, as tables on the disk."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from magicdistill.data_pipeline.captioning.captions import CAPTION
from magicdistill.data_pipeline.captioning.text_measures import MEASURES, measure
from magicdistill.data_pipeline.io.arrow import of_texts, pc
from magicdistill.data_pipeline.io.kept_tables import KeptFolder
from magicdistill.data_pipeline.io.query import ROWS_PER_GROUP, Database, text
from magicdistill.data_pipeline.io.storage import write_parquet
from magicdistill.data_pipeline.ledger.columns import IMPORTED, SLICE, imported_column, slice_of
from magicdistill.data_pipeline.ledger.takedowns import REASON, Takedowns
from magicdistill.data_pipeline.rows import VIDEO_SCHEMA

SUFFIX = ".table"
"""End of the files' names: where copies of objects are removed to make room, `.parquet` goes."""
FILE_ROWS = 500_000
"""Videos in one file."""
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
        self._files = sorted(folder.path.glob(f"[0-9]*{SUFFIX}"))
        self.sql = database.files(sorted(folder.path.glob(f"sorted-*{SUFFIX}")))
        """The table of all videos with the columns of DECIDING, `imported.…` and `slice`."""
        self.num_videos: int = database.value(f"SELECT count(*) FROM {self.sql}")
        self.imported = [c for c in database.columns(self.sql) if c.startswith(IMPORTED)]
        """The columns of imported scores, as `imported_column` names them."""

    @property
    def ranges(self) -> Iterator[tuple[str, str]]:
        """Tables of the videos, and the conditions on `ordinal` that select those of each."""
        for number, file in enumerate(self._files):
            first = number * FILE_ROWS
            condition = f"ordinal BETWEEN {first} AND {first + FILE_ROWS - 1}"
            yield self._db.files([file]), condition

    @property
    def whole(self) -> str:
        """The table of all videos with all columns."""
        return self._db.files(self._files)

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


def write_listing(
    database: Database,
    folder: Path,
    tables: Iterable[pa.Table],
    takedowns: Takedowns,
    with_captions: bool = False,
) -> str:
    """Write the files; of videos that were taken down only their names and the reason are left.

    Args:
        database: what asks.
        folder: the folder of the files.
        tables: the listing, as `iter_tables` gives it.
        takedowns: the films that must not be used.
        with_captions: whether the captions are measured, as scores that the listing has.

    Returns:
        A digest of what decisions ask for.
    """
    found = hashlib.blake2b(digest_size=16)
    num_videos = 0
    for number, rows in enumerate(_gathered(tables)):
        ordinals = np.arange(num_videos, num_videos + len(rows))
        rows = rows.append_column("ordinal", pa.array(ordinals, pa.int64()))
        rows = _marked(database, rows, takedowns)
        file = folder / f"{number:05d}{SUFFIX}"
        _write(rows, file, REPEATED, "ordinal")
        slices = of_texts(slice_of("text"), rows["video_id"].combine_chunks())
        columns = rows.select(DECIDING).append_column(SLICE, slices)
        for key, values in _wide(rows["imported_scores"].combine_chunks()).items():
            columns = columns.append_column(imported_column(key), values)
        for key, values in _measured(rows["caption"]).items() if with_captions else ():
            columns = columns.append_column(imported_column(key), values)
        by_slice = np.argsort(slices.to_numpy(), kind="stable")
        file = file.with_name(f"sorted-{file.name}")
        _write(columns.take(by_slice), file, ("mixture", "fault"), SLICE)
        found.update(file.read_bytes())
        num_videos += len(rows)
    return found.hexdigest()


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
