"""Find clips that are copies of others, across all sources and runs."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import duckdb
import numpy as np
import pyarrow as pa

from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.ledger.compared_values import (
    CLIP_HASH,
    SOURCE_HASH,
    Found,
    compare,
    read_clips,
)
from magicdistill.data_pipeline.rows import Array, digest

HOW = {"embedding": "embedding", "phash": "pHash"}
"""How near copies were found, by the kind of the scorer whose blobs were compared."""
COMPARED = tuple(HOW)
"""Kinds of the scorers whose blobs are compared to find near copies."""
CODE = 1
"""Raised when what is kept between runs is no longer what would be found."""
GREY = 0.02
"""Colourfulness below which a clip counts as grey."""
COPIES = pa.schema(
    {
        "clip_id": pa.string(),
        "of_clip_id": pa.string(),
        "of_source_id": pa.string(),
        "how": pa.string(),  # "the same file", "embedding" or "pHash"
        "is_held_out": pa.bool_(),
        "is_taken_down": pa.bool_(),
    }
)
TAKEN_DOWN, HELD_OUT, CANDIDATE = range(3)
"""Roles of clips: in this order they are decided on."""
CLIPS = pa.schema(
    {
        "clip_id": pa.string(),
        "source_id": pa.string(),
        "uri": pa.string(),
        "content_hash": pa.string(),
        "start": pa.int64(),
        "stop": pa.int64(),
        "crop": pa.list_(pa.int64()),
        "time_scale": pa.float64(),
        "width": pa.int64(),
        "height": pa.int64(),
        "blur": pa.float64(),
        "colour": pa.float64(),
        "phash": pa.binary(),
        "embedding": pa.binary(),
    }
)
"""What is compared of clips: blur and colourfulness are scores, and the last two are blobs."""
RANK = (
    f"width * height DESC, coalesce(colour, 1) < {GREY}, coalesce(blur, 0), "
    '"start" - "stop", source_id, clip_id'
)
"""The better of two copies comes first."""
SPAN = 'content_hash, "start", "stop", coalesce(crop, []), coalesce(time_scale, 1)'
"""What clips of the same frames have in common."""


def find_copies(
    db: duckdb.DuckDBPyConnection,
    candidates: str,
    held_out: str,
    taken_down: str,
    max_hash_bits: float,
    min_cosine: float,
    kept: AnyPath | None,
) -> pa.Table:
    """Return the clips that are copies of a better one, as a table of `COPIES`.

    The better copy is the larger, then one in colour, then the less blurred, then the longer one;
    what was scored first does not matter, so that many runs find what one run finds. Clips that
    share a source are copies only where they overlap in one file. A held-out clip is better than
    any other: what shares frames of a file with it, or looks like it, is its copy, even if both are
    moments of one source. So is a clip that was taken down, before all others. What is the mirror
    image of another clip is its copy, where hashes of mirrored frames are known.

    `of_clip_id` is kept, except where it is itself a near copy of a third clip, which then stands
    for all of them.

    Args:
        db: a connection in which the next three are tables or views with the columns of `CLIPS`;
            each is scanned a few times.
        candidates: clips that may be kept, whichever run has scored them. `phash` is 64 bytes,
            eight hashes of 64 bits, or as many hashes again, which are of the mirrored frames.
            `embedding` is float16. Blobs of one column must be comparable with each other.
        held_out: clips of which none of the candidates may be a copy.
        taken_down: clips that were taken down; no candidate may be a copy of them.
        max_hash_bits: mean distance of 64-bit hashes up to which clips are copies.
        min_cosine: cosine of embeddings from which clips are copies; where a clip has an
            embedding, its hashes are not looked at.
        kept: folder that remembers what was compared, so that the next run over clips of the
            same sources compares only new hashes with all; null remembers nothing. It may be
            removed at any time.
    """
    columns = ", ".join(f'"{name}"' for name in CLIPS.names)
    everything = " UNION ALL ".join(
        f"(SELECT {role} AS role, {columns} FROM {name})"
        for role, name in enumerate((taken_down, held_out, candidates))
    )
    copies = [_sharing(db, everything)]
    with _view(db, copies[0]) as sharing:
        copies.append(_same_file(db, everything, sharing))
    comparisons = {
        # A clip that was taken down may have no embedding of the present model.
        "taken down": ("phash", max_hash_bits, _WITHOUT_EMBEDDING),
        "embedding": ("embedding", min_cosine, "SELECT * FROM everything"),
        "phash": (
            "phash",
            max_hash_bits,
            f"SELECT * FROM everything WHERE embedding IS NULL OR role < {CANDIDATE}",
        ),
    }
    for name, (kind, limit, chosen) in comparisons.items():
        rows = f"WITH everything AS ({everything}) {chosen}"
        folder = kept and kept / digest(CODE, duckdb.__version__, name, limit)
        with _view(db, pa.concat_tables(copies)) as known:
            copies.append(_near(db, f"({rows})", known, kind, limit, folder))
    return pa.concat_tables(copies)


_WITHOUT_EMBEDDING = f"""
    SELECT * REPLACE (if(role = {CANDIDATE}, '', source_id) AS source_id, clip_id AS uri)
    FROM everything
    WHERE role = {TAKEN_DOWN} AND embedding IS NULL OR role = {CANDIDATE}
        AND embedding IS NOT NULL AND exists(FROM everything WHERE role = {TAKEN_DOWN})"""
"""Clips that were taken down and have no embedding, and candidates that have one. As moments of one
source, the candidates are not compared with each other."""


@contextmanager
def _view(db: duckdb.DuckDBPyConnection, table: pa.Table) -> Iterator[str]:
    """Register a table for the duration of the body."""
    name = f"copies_{uuid4().hex}"
    db.register(name, table)
    try:
        yield name
    finally:
        db.unregister(name)


def _sharing(db: duckdb.DuckDBPyConnection, everything: str) -> pa.Table:
    """Return the clips whose frames overlap those of a reference in the same file."""
    return (
        db.sql(f"""
        WITH everything AS ({everything}),
        held AS (SELECT *, row_number() OVER (ORDER BY role, {RANK}) AS place
                 FROM everything WHERE role < {CANDIDATE})
        SELECT c.clip_id, arg_min(h.clip_id, place) AS of_clip_id,
            arg_min(h.source_id, place) AS of_source_id, 'the same file' AS how,
            arg_min(h.role, place) = {HELD_OUT} AS is_held_out,
            arg_min(h.role, place) = {TAKEN_DOWN} AS is_taken_down
        FROM everything c JOIN held h ON c.content_hash = h.content_hash
            AND c."start" < h."stop" AND h."start" < c."stop"
        WHERE c.role = {CANDIDATE} AND c.content_hash <> ''
        GROUP BY c.clip_id""")
        .to_arrow_table()
        .cast(COPIES)
    )


def _same_file(db: duckdb.DuckDBPyConnection, everything: str, sharing: str) -> pa.Table:
    """Return the clips that show the same frames of the same file as a better one."""
    return (
        db.sql(f"""
        WITH clips AS (SELECT * FROM ({everything}) ANTI JOIN {sharing} USING (clip_id)
                       WHERE role = {CANDIDATE} AND content_hash <> ''),
        twice AS (SELECT hash({SPAN}) AS span FROM clips GROUP BY 1 HAVING count(*) > 1)
        SELECT clip_id, first_value(clip_id) OVER better AS of_clip_id,
            first_value(source_id) OVER better AS of_source_id, 'the same file' AS how,
            false AS is_held_out, false AS is_taken_down
        FROM clips WHERE hash({SPAN}) IN (FROM twice)
        WINDOW better AS (PARTITION BY {SPAN} ORDER BY {RANK})
        QUALIFY of_clip_id <> clip_id""")
        .to_arrow_table()
        .cast(COPIES)
    )


def _near(
    db: duckdb.DuckDBPyConnection,
    rows: str,
    known: str,
    kind: str,
    limit: float,
    kept: AnyPath | None,
) -> pa.Table:
    """Return the near copies that a column of blobs shows, other than those already known."""
    rows = f"(SELECT * FROM {rows} WHERE {kind} IS NOT NULL)"
    with tempfile.TemporaryDirectory() as folder:
        clips = read_clips(db, rows, kind, Path(folder))
        found = compare(clips, kind, limit, kept)
    if not len(clips.clips):
        return COPIES.empty_table()
    involved = pa.table({"clip": clips.clips[found.is_involved(clips)]})
    with _view(db, involved) as wanted:
        table = db.sql(f"""
            SELECT {CLIP_HASH} AS clip, {SOURCE_HASH} AS source, hash({kind}) AS value, role,
                clip_id, source_id
            FROM {rows} SEMI JOIN {wanted} ON {CLIP_HASH} = {wanted}.clip
            WHERE role < {CANDIDATE} OR clip_id NOT IN (SELECT clip_id FROM {known})
            ORDER BY role, {RANK}""").to_arrow_table()
    originals = _originals(table, found)
    copies = np.flatnonzero(originals >= 0)
    of = table.take(pa.array(originals[copies]))
    return pa.table(
        {
            "clip_id": table["clip_id"].take(pa.array(copies)),
            "of_clip_id": of["clip_id"],
            "of_source_id": of["source_id"],
            "how": pa.array([HOW[kind]] * len(copies), pa.string()),
            "is_held_out": of["role"].to_numpy() == HELD_OUT,
            "is_taken_down": of["role"].to_numpy() == TAKEN_DOWN,
        },
        schema=COPIES,
    )


def _originals(clips: pa.Table, found: Found) -> Array:
    """Return the row of the clip that each clip repeats, int64 (n); -1 where there is none.

    Clips come in the order of rank, references first. One is kept if it is near to none that is
    kept already. Those that are kept of one value are of one source, or the later would repeat the
    first; so the first of them stands for all, and only it is noted with the values near to its
    own. Each value needs to know the first such clip, and the first of another source than that.
    """
    ids, values = np.unique(clips["value"].to_numpy(), return_inverse=True)
    near, limits = _neighbours(np.searchsorted(ids, found.pairs_of(ids)), len(ids))
    names, order = np.unique(clips["clip"].to_numpy(), return_index=True)
    beside, bounds = _neighbours(
        order[np.searchsorted(names, found.overlaps_of(names))], len(order)
    )
    sources = clips["source"].to_numpy()
    first, second = np.full((2, len(ids)), -1)
    originals, is_noted = np.full(len(values), -1), np.zeros(len(ids), dtype=bool)
    for clip, (value, source) in enumerate(zip(values.tolist(), sources.tolist(), strict=True)):
        if source:
            best = first[value]
            if best >= 0 and sources[best] == source:
                best = second[value]
            others = beside[bounds[clip] : bounds[clip + 1]]
            others = others[(others < clip) & (originals[others] < 0)]
            originals[clip] = min([best, *others] if best >= 0 else others, default=-1)
        if originals[clip] < 0 and not is_noted[value]:
            is_noted[value] = True
            around = np.append(near[limits[value] : limits[value + 1]], value)
            known = first[around]
            second[around[(known >= 0) & (second[around] < 0) & (sources[known] != source)]] = clip
            first[around[known < 0]] = clip
    return originals


def _neighbours(pairs: Array, count: int) -> tuple[Array, Array]:
    """Return the partners of each of `count` numbers in pairs (2, p), one number's after another's,
    and where those of each number begin."""
    one, other = np.concatenate([pairs, pairs[::-1]], axis=1)
    order = np.argsort(one, kind="stable")
    return other[order], np.searchsorted(one[order], np.arange(count + 1))
