"""Find clips that are copies of others, across all sources and runs."""

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.ledger.compared_values import CLIP_HASH, Found, compare, read_clips
from magicdistill.data_pipeline.rows import Array

COMPARED = ("embedding", "phash")
"""Kinds of the scorers whose blobs are compared to find near copies."""
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
        kept: folder that remembers what was compared, so that a later run compares only new
            values with all; null remembers nothing.
    """
    columns = ", ".join(f'"{name}"' for name in CLIPS.names)
    everything = " UNION ALL ".join(
        f"(SELECT {role} AS role, {columns} FROM {name})"
        for role, name in enumerate((taken_down, held_out, candidates))
    )
    copies = [_sharing(db, everything)]
    with _view(db, copies[0]) as sharing:
        copies.append(_same_file(db, everything, sharing))
    with _view(db, pa.concat_tables(copies)) as known:
        for kind, how, limit in (
            ("embedding", "embedding", min_cosine),
            ("phash", "pHash", max_hash_bits),
        ):
            copies.append(_near(db, everything, known, kind, how, limit, kept))
    return pa.concat_tables(copies)


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
    everything: str,
    known: str,
    kind: str,
    how: str,
    limit: float,
    kept: AnyPath | None,
) -> pa.Table:
    """Return the near copies that a column of blobs shows, other than those already known."""
    others = "true" if kind == "embedding" else f"(embedding IS NULL OR role < {CANDIDATE})"
    rows = f"(SELECT * FROM ({everything}) WHERE {kind} IS NOT NULL AND {others})"
    with tempfile.TemporaryDirectory() as folder:
        clips = read_clips(db, rows, kind, Path(folder))
        found = compare(clips, kind, limit, Path(folder), kept)
    if not len(clips.clips):
        return COPIES.empty_table()
    involved = pa.table({"clip": clips.clips[found.is_involved(clips)]})
    with _view(db, involved) as wanted:
        table = db.sql(f"""
            SELECT {CLIP_HASH} AS clip, hash({kind}) AS value, role, clip_id, source_id
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
            "how": pa.array([how] * len(copies), pa.string()),
            "is_held_out": pc.equal(of["role"], HELD_OUT),
            "is_taken_down": pc.equal(of["role"], TAKEN_DOWN),
        },
        schema=COPIES,
    )


def _originals(clips: pa.Table, found: Found) -> Array:
    """Return the row of the clip that each clip repeats, int64 (n); -1 where there is none.

    Clips come in the order of rank, references first. One is kept if it is near to none that is
    kept already. Of the kept clips of one value, those after the first are from the same source as
    the first, so that for a clip of another source the first stands for all of them.
    """
    ids, values = np.unique(clips["value"].to_numpy(), return_inverse=True)
    near = _neighbours(np.searchsorted(ids, found.pairs_of(ids)))
    names, order = np.unique(clips["clip"].to_numpy(), return_index=True)
    overlaps = _neighbours(order[np.searchsorted(names, found.overlaps_of(names))])
    is_reference = (clips["role"].to_numpy() < CANDIDATE).tolist()
    sources = clips["source_id"].to_pylist()
    first = [-1] * len(ids)
    originals = [-1] * len(values)
    for clip, value in enumerate(values.tolist()):
        if not is_reference[clip]:
            better = [
                kept
                for other in (value, *near.get(value, ()))
                if (kept := first[other]) >= 0
                and (is_reference[kept] or sources[kept] != sources[clip])
            ]
            better += [o for o in overlaps.get(clip, ()) if o < clip and originals[o] < 0]
            originals[clip] = min(better, default=-1)
        if originals[clip] < 0 and first[value] < 0:
            first[value] = clip
    return np.array(originals, dtype=np.int64)


def _neighbours(pairs: Array) -> dict[int, list[int]]:
    """Return the numbers that stand in a pair with each number (2, p)."""
    near: dict[int, list[int]] = defaultdict(list)
    for a, b in pairs.T.tolist():
        near[a].append(b)
        near[b].append(a)
    return near
