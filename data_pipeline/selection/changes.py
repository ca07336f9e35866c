"""The videos on which decisions may differ from some that were made before."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from magicdistill.data_pipeline.io.query import Database
from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.ledger.ledger import Ledger, LedgerRows
from magicdistill.data_pipeline.ledger.scored_clips import slice_ranges
from magicdistill.data_pipeline.selection.listed_videos import ListedVideos

MAX_SHARE = 1 / 8
"""Share of the videos up to which decisions on the others are taken over."""


class Basis(TypedDict):
    """What decisions were made of."""

    groups: Sequence[tuple[str, int]]
    """Digest and number of videos of each group of the listing."""
    ledger: dict[str, str]
    """States of the ledger's parts."""
    is_complete: bool
    """Whether all videos had clips, and all clips the scores that they were to get."""


@dataclass(frozen=True)
class Universe:
    """The videos and rows of the ledger that are looked at: all, or those that may differ."""

    rows: LedgerRows
    listed: str
    """The table of the videos, with the columns of `ListedVideos.sql`."""
    num_videos: int
    num_kept: int | None = None
    """The videos from this ordinal on are all looked at; None where all are."""

    def parts(self) -> list[str]:
        """Return conditions on slices that divide the videos into parts, which bounds memory."""
        return [*slice_ranges(self.rows.num_rows + self.num_videos)]


def basis_of(listing: ListedVideos, ledger: Ledger) -> Basis:
    """Return what decisions are made of now."""
    groups = [(group["digest"], sum(group["counts"])) for group in listing.groups]
    return Basis(groups=groups, ledger=ledger.states(), is_complete=False)


def differing(
    database: Database,
    rows: LedgerRows,
    listing: ListedVideos,
    basis: Basis,
    changed: Sequence[AnyPath],
    folder: Path,
) -> Universe | None:
    """Return the videos that are listed otherwise, or of which there are other rows.

    Args:
        database: what asks.
        rows: the rows of the ledger.
        listing: the videos.
        basis: what the decisions were made of.
        changed: files with the rows that the ledger did not have then.
        folder: an empty folder.

    Returns:
        The videos with all of their rows; None where they are too many.
    """
    num_groups, num_kept = _kept(basis, listing)
    same, other = listing.split(num_groups)
    tables = _Tables(database, folder)
    listed = [f"FROM {other}"] if other else []
    if changed and same:
        known = tables.write(f"SELECT DISTINCT video_id FROM {database.files(changed)}")
        listed.append(tables.few(same, known))
    some = tables.write(_together(listed) or f"FROM {same} LIMIT 0")
    count = database.value(f"SELECT count(*) FROM {some}")
    if count > MAX_SHARE * listing.num_videos:
        return None
    recorded = [f"FROM ({rows.sql}) LIMIT 0"]
    for files, find in ((changed, tables.many), (rows.without(changed), tables.few)):
        if files:
            recorded.append(find(f"({rows.of(files)})", some))
    own = tables.write(_together(recorded))
    num_rows = database.value(f"SELECT count(*) FROM {own}")
    return Universe(replace(rows, sql=f"FROM {own}", num_rows=num_rows), some, count, num_kept)


class _Tables:
    """Writes tables into a folder."""

    def __init__(self, database: Database, folder: Path) -> None:
        self._db, self._folder, self._count = database, folder, 0

    def write(self, query: str) -> str:
        """Return the table of a query's result."""
        self._count += 1
        path = self._folder / f"{self._count}.parquet"
        self._db.write(query, path)
        return self._db.files([path])

    def many(self, table: str, some: str) -> str:
        """Return the query of the rows of some videos."""
        return f"SELECT * FROM {table} AS t SEMI JOIN {some} AS s USING (video_id)"

    def few(self, table: str, some: str) -> str:
        """Return the same where there are few: first those are found that are there at all, which
        reads one column."""
        there = self.write(f"SELECT DISTINCT video_id FROM ({self.many(table, some)})")
        if not self._db.value(f"SELECT count(*) FROM {there}"):
            return f"FROM {table} LIMIT 0"
        return f"FROM {table} WHERE video_id IN (FROM {there})"


def _together(queries: Sequence[str]) -> str:
    return " UNION ALL BY NAME ".join(f"({query})" for query in queries)


def _kept(basis: Basis, listing: ListedVideos) -> tuple[int, int]:
    """Return how many groups at the beginning are listed as they were, and videos in them."""
    groups, count = 0, 0
    for (digest, size), group in zip(basis["groups"], listing.groups, strict=False):
        if digest != group["digest"] or size != sum(group["counts"]):
            break
        groups, count = groups + 1, count + size
    return groups, count
