"""Queries that bring the rows of every clip together, and that find the videos that have none."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

from magicdistill.data_pipeline.io.query import name, text
from magicdistill.data_pipeline.ledger.columns import MAPS, NUM_SLICES, PLAIN, SLICE
from magicdistill.data_pipeline.ledger.ledger import LedgerRows
from magicdistill.data_pipeline.scorers.base import ABSENT, Scorer

ROWS_AT_ONCE = 4_000_000
"""About as many rows of ledger and listing are brought together at once, which bounds memory. With
fewer, row groups of ROWS_PER_GROUP, which lie in slices of a file, would be read several times."""
LISTED = ("uri", "path", "license", "mixture", "entry", "time_scale", "caption", "imported_scores")
"""Columns of a clip that the present listing fills in. The recorded source id stays: takedowns find
all that a film left by it."""
FINDINGS = tuple(
    column
    for column in PLAIN
    if column not in (*LISTED, "clip_id", "video_id", "fingerprint", "measures", "failure")
)
"""Columns of a clip that one of its rows says, beside its failure."""


def slice_ranges(num_rows: int) -> Iterator[str]:
    """Yield conditions on `slice` that divide so many rows into parts of about ROWS_AT_ONCE."""
    count = min(max(1, ceil(num_rows / ROWS_AT_ONCE)), NUM_SLICES)
    bounds = [number * NUM_SLICES // count for number in range(count + 1)]
    for first, stop in pairwise(bounds):
        yield f"{SLICE} BETWEEN {first} AND {stop - 1}"


def videos_without_clips(rows: LedgerRows, listing: str, measures: str, part: str) -> str:
    """Return the query of the listed videos of which no row counts, whatever their scores.

    Args:
        rows: the ledger's rows.
        listing: the listed videos, a table or a query in parentheses.
        measures: version of the settings under which clips must have been found.
        part: the condition on slices.
    """
    counts = f"measures = {text(measures)} AND NOT {_is_stale(rows.columns, {})}"
    known = f"(FROM ({rows.sql}) WHERE {part} AND {counts})"
    return f"FROM (FROM {listing} WHERE {part}) ANTI JOIN {known} USING (video_id, fingerprint)"


def scored_clips(
    rows: LedgerRows,
    listing: str,
    imported: Sequence[str],
    measures: str,
    scorers: Sequence[Scorer],
    part: str,
    repeated: str,
    blobs: Collection[str] = (),
    only: str = "true",
) -> str:
    """Return the query of the recorded clips of those videos whose content has not changed since.

    A clip's span, size, failure and so on are those of one of its rows: of contradicting ones a
    failure counts, and else the largest, so that it does not matter which is read first. Of each
    scorer the results of the wanted version count, from whichever row. Columns are `ordinal`, those
    of `CLIP_COLUMNS` that need no look at the listing's texts, and `imported.…`, `scores.…`,
    `scorers.…` and `blobs.…`; the scores of an absent scorer are null.

    Args:
        rows: the ledger's rows.
        listing: the videos that the sources list now, a table or a query in parentheses.
        imported: its columns of imported scores.
        measures: version of the settings under which the clips must have been found.
        scorers: scorers whose results are wanted; results of their other versions are ignored.
        part: the condition on slices.
        repeated: the clips of `repeated_clips`, a table or a query in parentheses; empty if there
            are none.
        blobs: kinds of scorers whose blobs are wanted.
        only: a condition on the ledger's rows.
    """
    has = set(rows.columns)
    versions = {scorer.kind: scorer.version for scorer in scorers}
    found = _found_with_the_clip(has, versions)
    counts = f"measures = {text(measures)} AND NOT {_is_stale(has, versions)}"
    gathered = [_chosen(("failure", *FINDINGS, *found), counts)]
    gathered += [
        _result(scorer, versions[scorer.kind], has, scorer.kind in blobs)
        for scorer in scorers
        if not versions[scorer.kind].startswith(ABSENT)
    ]
    facts = ["ordinal", "mixture", "time_scale", *map(name, imported)]
    same = {"video_id": "l", "fingerprint": "l", SLICE: "l"} | dict.fromkeys(facts, "v")
    videos = f"(SELECT video_id, fingerprint, {', '.join(facts)} FROM {listing} WHERE {part})"
    joined = (
        f"(FROM ({rows.sql}) WHERE {part} AND {only}) AS l "
        f"JOIN {videos} AS v USING (video_id, fingerprint)"
    )
    fixed = [f"{text(measures)} AS measures"]
    fixed += [column for scorer in scorers for column in _absent(scorer, versions[scorer.kind])]
    values = [f"{table}.{column}" for column, table in same.items()]
    values += [column for g in gathered for column in g.of_one_row]
    clips = f"SELECT clip_id, {', '.join((*values, *fixed))} FROM {joined} WHERE {counts}"
    if not repeated:
        return clips
    values = [f"any_value({table}.{column}) AS {column}" for column, table in same.items()]
    values += [f"max({g.value}) FILTER (WHERE {g.condition}) AS {name(g.name)}" for g in gathered]
    several = (
        f"SELECT clip_id, {', '.join(values)} FROM {joined} WHERE clip_id IN (FROM {repeated}) "
        f"GROUP BY clip_id HAVING bool_or({counts})"
    )
    columns = ("clip_id", *same, *(column for g in gathered for column in g.of_several), *fixed)
    return (
        f"{clips} AND clip_id NOT IN (FROM {repeated}) UNION ALL "
        f"SELECT {', '.join(columns)} FROM ({several})"
    )


@dataclass(frozen=True)
class _Gathered:
    """What is taken from a clip's rows: the largest value of those for which a condition holds."""

    name: str
    value: str
    condition: str
    of_several: Sequence[str]
    """What becomes of it."""
    of_one_row: Sequence[str]
    """The same where the clip has a single row, without a detour by the value, which costs time."""


def _chosen(columns: Sequence[str], counts: str) -> _Gathered:
    """Return what is taken of the row whose findings count."""
    fields = ", ".join(f"{name(column)}: {name(column)}" for column in columns)
    value = f"{{lost: failure <> '', {fields}}}"
    taken = [f"chosen.{name(column)} AS {name(column)}" for column in columns]
    return _Gathered("chosen", value, counts, taken, [*map(name, columns)])


def _result(scorer: Scorer, version: str, has: Collection[str], with_blob: bool) -> _Gathered:
    """Return what is taken of a scorer's results of one version."""
    kind, alias = scorer.kind, f"of {scorer.kind}"
    held = [f"scores.{kind}.{score}" for score in scorer.SCORES]
    if with_blob:
        held.append(f"blobs.{kind}")
    fields = ", ".join(f"{name(column)}: {_or_null(column, has)}" for column in held)
    seen = f"failure = '' AND {_or_null(f'scorers.{kind}', has)} = {text(version)}"
    scorer_column = name(f"scorers.{kind}")
    taken = f"CASE WHEN {name(alias)}.seen THEN {text(version)} END AS {scorer_column}"
    of_several = (taken, *(f"{name(alias)}.{name(column)} AS {name(column)}" for column in held))
    of_one_row = [f"CASE WHEN {seen} THEN {text(version)} END AS {scorer_column}"]
    of_one_row += [
        f"CASE WHEN {seen} THEN {_or_null(column, has)} END AS {name(column)}" for column in held
    ]
    return _Gathered(alias, f"{{seen: true, {fields}}}", seen, of_several, of_one_row)


def _absent(scorer: Scorer, version: str) -> Iterator[str]:
    """Yield the columns of a scorer without weights: nulls, and the reason; others have none."""
    if version.startswith(ABSENT):
        yield f"{text(version)} AS {name(f'scorers.{scorer.kind}')}"
        for score in scorer.SCORES:
            yield f"NULL::DOUBLE AS {name(f'scores.{scorer.kind}.{score}')}"


def repeated_clips(rows: LedgerRows, part: str) -> str:
    """Return the query of the ids of clips of which there are several rows: few, as a rule, and
    only those have to be brought together."""
    return f"SELECT clip_id FROM ({rows.sql}) WHERE {part} GROUP BY clip_id HAVING count(*) > 1"


def _is_stale(columns: Collection[str], wanted: Mapping[str, str]) -> str:
    """Return the condition of rows that failed under other scorers than the wanted ones."""
    others = [
        f"{name(column)} <> {text(wanted[kind])}"
        if kind in wanted
        else f"{name(column)} IS NOT NULL"
        for column in columns
        if column.startswith("scorers.")
        for kind in (column.partition(".")[2],)
    ]
    return f"(failure <> '' AND coalesce({' OR '.join(others) or 'false'}, false))"


def _found_with_the_clip(columns: Collection[str], kinds: Collection[str]) -> list[str]:
    """Return the columns of scores that no scorer took: they belong to the clip's row."""
    return sorted(
        column
        for column in columns
        if column.startswith("scores.")
        for kind in (column.split(".")[1],)
        if kind not in kinds and f"scorers.{kind}" not in columns
    )


def _or_null(column: str, columns: Collection[str]) -> str:
    return name(column) if column in columns else f"NULL::{MAPS[column.partition('.')[0]]}"
