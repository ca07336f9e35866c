"""The ledger's rows in SQL: each score has a column, so that a query reads only what it names.

Scoring commits rows of `CLIP_SCHEMA`, with maps of scores. Where parts are merged, and before they
are asked, a map becomes columns such as `scores.blur.effect`, `scorers.blur` and `blobs.phash`.
"""

import re
from collections.abc import Collection
from dataclasses import MISSING, fields

from magicdistill.data_pipeline.io.query import Database, name, text
from magicdistill.data_pipeline.rows import CLIP_COLUMNS, STORED, ClipRow, Video

MAPS = {"scores": "DOUBLE", "scorers": "VARCHAR", "blobs": "BLOB"}
"""Maps of a clip that become columns, with the type of their values."""
IMPORTED = "imported."
"""Begins the names of the columns of imported scores, which a listing has for each of its keys."""
SLICE = "slice"
"""Column of a hash of the video's id, by which files are sorted: rows of one slice are together, so
that a query over some slices skips the other row groups of all files."""
NUM_SLICES = 256
PLAIN = tuple(column for column in CLIP_COLUMNS if column not in MAPS)
"""Columns of the ledger's rows that are no such maps."""


def imported_column(score: str) -> str:
    """Return the column of an imported score. DuckDB takes `A` for `a` in names of columns, and a
    data set may have both, so that capitals are written as `^a`."""
    return IMPORTED + re.sub(r"[A-Z^]", lambda found: f"^{found[0].lower()}", score)


def imported_score(column: str) -> str:
    """Return the score of a column that `imported_column` named."""
    return re.sub(r"\^(.)", lambda found: found[1].upper(), column.removeprefix(IMPORTED))


def slice_of(video_id: str) -> str:
    """Return the slice of a video as SQL, in 0 … NUM_SLICES - 1; MD5 is the same for ever."""
    return f"(md5_number_lower({video_id}) % {NUM_SLICES})::USMALLINT"


def widened(db: Database, rows: str) -> str:
    """Return the query that makes rows of `CLIP_SCHEMA`, of any age, into rows of wide columns."""
    columns = [_plain(column) for column in PLAIN]
    for kind in MAPS:
        keys = f"SELECT DISTINCT unnest(map_keys({kind})) AS k FROM {rows} ORDER BY k"
        for (key,) in db.rows(keys):
            columns.append(f"{kind}[{text(key)}] AS {name(f'{kind}.{key}')}")
    return f"SELECT {slice_of('video_id')} AS {SLICE}, {', '.join(columns)} FROM {rows}"


def read_back(db: Database, files: str) -> str:
    """Return the query of the wide rows in some files, whose writers may have been older."""
    known = db.columns(files)
    plain = ", ".join(_plain(column) for column in PLAIN if column in known)
    lost = ", ".join(
        f"{_default(column)} AS {name(column)}" for column in PLAIN if column not in known
    )
    others = ", ".join(name(column) for column in known if is_wide(column))
    return f"SELECT {', '.join(filter(None, (SLICE, plain, lost, others)))} FROM {files}"


def is_wide(column: str) -> bool:
    """Tell whether a column holds one value of a map."""
    kind, dot, _ = column.partition(".")
    return bool(dot) and kind in MAPS


def recorded(columns: Collection[str]) -> str:
    """Return the columns of `CLIP_SCHEMA` as SQL, made of the wide ones.

    A score that its scorer could not take is null there; one that nobody took is left out.
    """
    maps = (f"{_map(kind, columns)} AS {kind}" for kind in MAPS)
    return ", ".join((*map(name, PLAIN), *maps))


def _map(kind: str, columns: Collection[str]) -> str:
    entries: list[str] = []
    for column in columns:
        if not column.startswith(f"{kind}."):
            continue
        key, there = column.partition(".")[2], f"{name(column)} IS NOT NULL"
        scorer = f"scorers.{key.partition('.')[0]}"
        if kind == "scores" and scorer in columns:
            there += f" OR {name(scorer)} IS NOT NULL"
        entries.append(f"CASE WHEN {there} THEN {{k: {text(key)}, v: {name(column)}}} END")
    if not entries:
        return f"MAP {{}}::MAP(VARCHAR, {MAPS[kind]})"
    return f"map_from_entries(list_filter([{', '.join(entries)}], lambda e: e IS NOT NULL))"


def _plain(column: str) -> str:
    default = _default(column)
    return (
        name(column)
        if default == "NULL"
        else f"coalesce({name(column)}, {default}) AS {name(column)}"
    )


def _default(column: str) -> str:
    """Return what a column holds in rows that were written before it existed, as SQL."""
    kind = Video if column in STORED else ClipRow
    (found,) = (f for f in fields(kind) if f.name == column)
    value = "" if found.default is MISSING else found.default
    if found.default_factory is not MISSING:
        return "MAP {}::MAP(VARCHAR, DOUBLE)"
    if value is None:
        return "NULL"
    if isinstance(value, tuple):
        return "[]::BIGINT[]"
    return text(value) if isinstance(value, str) else f"{value!r}"
