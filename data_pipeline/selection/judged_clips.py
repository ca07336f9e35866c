"""Clips with the decisions on them, as tables on the disk."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from magicdistill.data_pipeline.io.kept_tables import KeptFolder
from magicdistill.data_pipeline.io.query import Database, name, text
from magicdistill.data_pipeline.ledger.captions import WRITTEN
from magicdistill.data_pipeline.ledger.columns import recorded
from magicdistill.data_pipeline.ledger.policy import Decision
from magicdistill.data_pipeline.ledger.scored_clips import LISTED
from magicdistill.data_pipeline.rows import CLIP_SCHEMA, clips_from_table
from magicdistill.data_pipeline.selection.listed_videos import ListedVideos

IN_ORDER = "ORDER BY ordinal, start, clip_id"
"""The order of the listing, and inside a video that of its frames."""
BATCH_ROWS = 10_000
STORED_ROWS = 100_000
"""Decisions that are stored together, as a row group."""


class ClipTable:
    """Clips of a config in Parquet files; nothing is in memory unless it is asked."""

    def __init__(self, database: Database, tables: Sequence[str], listing: ListedVideos) -> None:
        """Take tables of different slices, with the columns of `scored_clips`."""
        self.database = database
        self._tables, self._listing = tables, listing
        self.sql = f"({' UNION ALL BY NAME '.join(f'FROM {table}' for table in tables)})"
        """The table of all clips."""
        self.columns = database.columns(self.sql)

    def count(self, condition: str = "true") -> int:
        """Return the number of clips that a condition selects."""
        return self.database.value(f"SELECT count(*) FROM {self.sql} WHERE {condition}")

    def count_videos(self) -> int:
        """Return the number of videos that the clips are of."""
        counts = (f"SELECT count(DISTINCT ordinal) FROM {table}" for table in self._tables)
        return sum(map(self.database.value, counts))

    def count_by(self, key: str, condition: str = "true", source: str = "") -> dict[str, int]:
        """Return the number of clips by the value of an SQL expression, the largest first.

        `source` is a query to count in instead of the clips.
        """
        found = self.database.rows(
            f"SELECT {key} AS key, count(*) AS n FROM {source or self.sql} WHERE {condition} "
            "GROUP BY key ORDER BY n DESC, min(ordinal), key"
        )
        return dict(found)

    def tables(self, condition: str = "true", also: Sequence[str] = ()) -> Iterator[pa.Table]:
        """Yield clips in the order of the listing, as tables of `CLIP_SCHEMA`.

        `also` names columns of this table that follow those of the schema.
        """
        columns = ", ".join((recorded(self.columns), *map(name, also)))
        for table in self._in_order(condition, columns):
            schema = pa.schema([*CLIP_SCHEMA, *map(table.schema.field, also)])
            yield table.select(schema.names).cast(schema)

    def write_distinct(self, column: str, condition: str, path: Path) -> None:
        """Write the different values of a column of some clips, which may be the listing's."""
        parts = [
            f"SELECT {name(column)} FROM ({self.as_listed(f'{ordinals} AND {condition}', listed)})"
            for listed, ordinals in self._listing.ranges
        ]
        self.database.write(
            f"SELECT DISTINCT {name(column)} FROM ({' UNION ALL '.join(parts)})", path
        )

    def as_listed(self, condition: str, listed: str) -> str:
        """Return the query of clips with the columns that only the listing has."""
        texts = {c: f"v.{name(c)}" for c in LISTED if c not in self.columns}
        if WRITTEN in self.columns:
            texts["caption"] = f"coalesce(c.{WRITTEN}, v.caption) AS caption"
        columns = ", ".join(("c.*", *texts.values()))
        clips = f"(FROM {self.sql} WHERE {condition}) AS c"
        return f"SELECT {columns} FROM {clips} JOIN {listed} AS v USING (ordinal)"

    def _in_order(self, condition: str, columns: str) -> Iterator[pa.Table]:
        for listed, ordinals in self._listing.ranges:
            rows = self.as_listed(f"{ordinals} AND ({condition})", listed)
            query = f"SELECT {columns} FROM ({rows}) {IN_ORDER}"
            for batch in self.database.batches(query, BATCH_ROWS):
                yield pa.Table.from_batches([batch])


class JudgedClips(ClipTable):
    """Clips with the columns of `policy.judged`."""

    def __init__(
        self,
        database: Database,
        tables: Sequence[str],
        listing: ListedVideos,
        folder: KeptFolder | None = None,
    ) -> None:
        """Take the tables, and the folder that they are in if it is one that may be kept."""
        super().__init__(database, tables, listing)
        self._held = folder

    @property
    def made_as(self) -> str:
        """A name that no other decisions have, and these keep in the next run if that uses them;
        empty if there is none."""
        return self._held.path.name if self._held else ""

    @property
    def is_taken_over(self) -> bool:
        """Whether most of the decisions were made by an earlier run."""
        return self._held is not None and self._held.facts["num_kept"] is not None

    def decisions(self, condition: str = "true", most: int | None = None) -> Iterator[Decision]:
        """Yield decisions in the order of the listing, one object each: for small numbers.

        `most` is the largest number of them.
        """
        if most is None:
            yield from _decisions(self._in_order(condition, self._decided))
            return
        first = f"SELECT clip_id FROM {self.sql} WHERE {condition} {IN_ORDER} LIMIT {most}"
        yield from self.of_clips([clip_id for (clip_id,) in self.database.rows(first)])

    def of_clips(self, clip_ids: Sequence[str]) -> list[Decision]:
        """Return the decisions on a few clips in the order of the listing."""
        ids = ", ".join(map(text, clip_ids)) or "NULL"
        rows = self.as_listed(f"clip_id IN ({ids})", self._listing.whole)
        query = f"SELECT {self._decided} FROM ({rows}) {IN_ORDER}"
        return [*_decisions([self.database.table(query)])]

    @property
    def _decided(self) -> str:
        return f"{recorded(self.columns)}, status, reasons"

    def stored(self) -> Iterator[pa.RecordBatch]:
        """Yield the decisions as the ledger stores them."""
        columns = "clip_id, source_id, status, reasons"
        for table in self._tables:
            yield from self.database.batches(
                f"SELECT {columns} FROM {table} {IN_ORDER}", STORED_ROWS
            )


def _decisions(tables: Iterable[pa.Table]) -> Iterator[Decision]:
    for table in tables:
        clips = clips_from_table(table.select(CLIP_SCHEMA.names).cast(CLIP_SCHEMA))
        states, reasons = (table[column].to_pylist() for column in ("status", "reasons"))
        for clip, status, why in zip(clips, states, reasons, strict=True):
            yield Decision(clip, status, tuple(why))
