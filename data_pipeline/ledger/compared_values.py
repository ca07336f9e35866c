"""Compare the hashes or embeddings of all clips, each different one once, and remember it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from magicdistill.data_pipeline.io.storage import (
    AnyPath,
    list_files,
    read_files,
    remove,
    write_parquet,
)
from magicdistill.data_pipeline.ledger.near_pairs import near_pairs
from magicdistill.data_pipeline.ledger.signatures import (
    Signatures,
    array_in_a_file,
    distinct,
    embedding_signatures,
    hash_signatures,
)
from magicdistill.data_pipeline.rows import Array

CLIP_HASH = "hash(clip_id, role)"
"""Name of a clip in one of the roles, in 64 bits."""
SOURCE_HASH = "if(role = 2, hash(source_id), 0::UBIGINT)"
"""Name of a candidate's source; 0 of a reference, which is compared with all sources."""
BATCH = 1 << 16
"""Rows that are read at once."""
MAX_FILES = 64
"""With more files of compared values than these, all are merged into one."""
PAIR, ADDED, GONE = range(3)
KEPT = pa.schema({"what": pa.int8(), "one": pa.uint64(), "other": pa.uint64()})
"""Pairs of near values, and values, each with its source, that were compared with all others of a
run for the first time, or that are no longer among them."""
ALL = "-all.parquet"
"""Ends the name of a file that replaces those before it."""
ROUGH_RANK = """
    (role::UBIGINT << 60) | (greatest(134217727 - coalesce(width * height, 0), 0)::UBIGINT << 33)
    | (coalesce(colour < 0.02, false)::UBIGINT << 32)
    | ((65535 * least(greatest(coalesce(blur, 0), 0), 1))::UBIGINT << 16)
    | greatest(65535 - coalesce("stop" - "start", 0), 0)::UBIGINT"""
"""The order of rank in 64 bits, the best first, which some clips share."""

_KINDS = (*[np.uint64] * 3, *[np.int64] * 2, *[np.uint64] * 2, np.int32)


@dataclass
class Clips:
    """What is read of clips with a blob, one entry a clip, and files of the blobs by their length.

    At 36 million clips these columns take 2.3 GiB, so names of clips and the like are not here.
    """

    clips: Array
    """CLIP_HASH, uint64 (n)."""
    sources: Array
    """SOURCE_HASH, uint64 (n)."""
    files: Array
    """Hash of source and file, uint64 (n)."""
    starts: Array
    """First frame, int64 (n)."""
    stops: Array
    """One past the last frame, int64 (n)."""
    ranks: Array
    """ROUGH_RANK, uint64 (n)."""
    values: Array
    """Hash of the blob, uint64 (n)."""
    lengths: Array
    """Length of the blob in bytes, int32 (n)."""
    blobs: dict[int, Path]
    """File of the blobs of each length, in order."""


@dataclass
class Found:
    """Pairs that were found."""

    pairs: Array
    """Hashes of near values, uint64 (p, 2), other than of clips of one source alone."""
    overlaps: Array
    """Pairs of clips that have frames of a file in common and are near, CLIP_HASH (q, 2)."""
    shared: Array
    """Hashes of values that clips of several sources have, uint64."""

    def is_involved(self, clips: Clips) -> Array:
        """Tell which clips are in a pair, or have their value in common with others, bool (n)."""
        values = distinct(np.concatenate([self.pairs.ravel(), self.shared]))
        overlapping = distinct(self.overlaps)
        return is_among(clips.values, values) | is_among(clips.clips, overlapping)

    def pairs_of(self, values: Array) -> Array:
        """Return the pairs of which both sides are among some ordered values, (2, p)."""
        return self.pairs[is_among(self.pairs, values).all(axis=1)].T

    def overlaps_of(self, clips: Array) -> Array:
        """Return the overlaps of which both sides are among some ordered clips, (2, q)."""
        return self.overlaps[is_among(self.overlaps, clips).all(axis=1)].T


def read_clips(db: duckdb.DuckDBPyConnection, rows: str, kind: str, folder: Path) -> Clips:
    """Read all rows of a query once; blobs go to files in `folder`."""
    reader = db.sql(f"""
        SELECT {CLIP_HASH}, {SOURCE_HASH}, hash(source_id, uri),
            coalesce("start", 0), coalesce("stop", 0), {ROUGH_RANK}, hash({kind}),
            octet_length({kind})::INTEGER, {kind}
        FROM {rows}""").to_arrow_reader(BATCH)
    columns: list[list[Array]] = [[] for _ in _KINDS]
    blobs: dict[int, Path] = {}
    with reader:
        for batch in reader:
            for column, values in zip(columns, batch.columns, strict=False):
                column.append(values.to_numpy())
            lengths = columns[-1][-1]
            for length in distinct(lengths).tolist():
                path = blobs.setdefault(length, folder / f"{kind}-{length}")
                own = batch.column(8).filter(pa.array(lengths == length))
                data = own.buffers()[2]
                with path.open("ab") as file:
                    file.write(memoryview(data)[: len(own) * length])
    joined = [
        np.concatenate([np.zeros(0, kind), *column])
        for kind, column in zip(_KINDS, columns, strict=True)
    ]
    return Clips(*joined, blobs=blobs)


def compare(clips: Clips, kind: str, limit: float, kept: AnyPath | None) -> Found:
    """Return the near pairs.

    Args:
        clips: the clips.
        kind: `phash` or `embedding`.
        limit: the largest mean distance of two hashes in bits, or the smallest cosine.
        kept: folder of what was compared before, for this kind and limit and for clips of the same
            sources; only new values are compared with all others.
    """
    before = _read_kept(kept) if kept else KEPT.empty_table()
    known = _known(before)
    known_marks = np.sort(_marks(*known))
    pairs, overlaps, shared = [_of(before, PAIR)], [np.zeros((0, 2), np.uint64)], []
    events, marks = [KEPT.empty_table()], [np.zeros(0, np.uint64)]
    widths = _widths(clips.lengths, kind)
    for width in distinct(widths).tolist():
        rows = np.flatnonzero(widths == width)
        values = _distinct(clips, rows)
        signatures = _sign(clips, values, kind, width, limit)
        marks.append(_marks(values.ids, values.sources))
        is_new = ~is_among(marks[-1], known_marks)
        found = values.ids[near_pairs(signatures, values.sources, is_new)]
        pairs.append(found)
        overlaps.append(_overlaps(clips, rows, values, signatures))
        shared.append(values.ids[values.sources == 0])
        events.append(_events(PAIR, *found.T))
        events.append(_events(ADDED, values.ids[is_new], values.sources[is_new]))
    is_gone = ~is_among(_marks(*known), np.sort(np.concatenate(marks)))
    events.append(_events(GONE, *known[:, is_gone]))
    if kept:
        _keep(kept, pa.concat_tables(events))
    none = np.zeros(0, np.uint64)
    return Found(np.concatenate(pairs), np.concatenate(overlaps), np.concatenate([none, *shared]))


def is_among(items: Array, ordered: Array) -> Array:
    """Tell which items occur in an ordered array."""
    if not len(ordered):
        return np.zeros(items.shape, dtype=bool)
    return ordered[np.minimum(np.searchsorted(ordered, items), len(ordered) - 1)] == items


@dataclass
class _Values:
    """The different blobs of some rows, in the order of their best clips' ranks."""

    ids: Array
    """Hash of each blob, uint64 (v)."""
    sources: Array
    """The source of the blob's clips, uint64 (v); 0 where there are several, or a reference."""
    rows: Array
    """One of the rows that have the blob, int64 (v)."""
    of_row: Array
    """The blob of each row, int64 (n)."""


def _distinct(clips: Clips, rows: Array) -> _Values:
    ids, first, values = np.unique(clips.values[rows], return_index=True, return_inverse=True)
    ranks, low = np.full((2, len(ids)), np.iinfo(np.uint64).max, dtype=np.uint64)
    high = np.zeros(len(ids), dtype=np.uint64)
    np.minimum.at(ranks, values, clips.ranks[rows])
    np.minimum.at(low, values, clips.sources[rows])
    np.maximum.at(high, values, clips.sources[rows])
    order = np.argsort(ranks, kind="stable")
    places = np.empty(len(ids), dtype=np.int64)
    places[order] = np.arange(len(ids))
    sources = np.where(low == high, low, np.uint64(0))
    return _Values(ids[order], sources[order], rows[first[order]], places[values])


def _widths(lengths: Array, kind: str) -> Array:
    """Return how many bytes of each blob are of frames that are not mirrored.

    Hashes of eight frames without their mirror images have 64 bytes, as older ledgers have them;
    a number of hashes of 8 bytes that is odd has no mirror images either.
    """
    is_single = (lengths == 64) | (lengths % 16 != 0) | (kind == "embedding")
    return np.where(is_single, lengths, lengths // 2)


def _sign(clips: Clips, values: _Values, kind: str, width: int, limit: float) -> Signatures:
    """Write the strings that stand for values to a file, and return them."""
    count = len(values.ids)
    if kind == "embedding":
        vectors = array_in_a_file(np.float16, count, width // 2)
        for part, blobs in _blobs(clips, values.rows, width):
            vectors[part] = blobs.view(np.float16)
        return embedding_signatures(vectors, limit)
    mirrored = np.flatnonzero(clips.lengths[values.rows] > width)
    words = array_in_a_file(np.uint64, count + len(mirrored), width // 8)
    for part, blobs in _blobs(clips, values.rows, width):
        words[part] = blobs.view(np.uint64)
    for part, blobs in _blobs(clips, values.rows, 2 * width):
        words[part] = np.ascontiguousarray(blobs[:, :width]).view(np.uint64)
        at = count + np.searchsorted(mirrored, part)
        words[at] = np.ascontiguousarray(blobs[:, width:]).view(np.uint64)
    return hash_signatures(
        words, np.concatenate([np.arange(count), mirrored]).astype(np.uint32), limit
    )


def _blobs(clips: Clips, rows: Array, length: int) -> Iterator[tuple[Array, Array]]:
    """Yield blobs of a length, uint8 (n, length), and which of the rows they belong to."""
    if length not in clips.blobs:
        return
    data = np.memmap(clips.blobs[length], np.uint8, "r").reshape(-1, length)
    places = np.cumsum(clips.lengths == length) - 1
    own = np.flatnonzero(clips.lengths[rows] == length)
    for start in range(0, len(own), BATCH):
        part = own[start : start + BATCH]
        yield part, data[places[rows[part]]]


def _overlaps(clips: Clips, rows: Array, values: _Values, signatures: Signatures) -> Array:
    """Return the near candidates that have frames of a file in common, as CLIP_HASH (q, 2)."""
    own = np.flatnonzero(clips.sources[rows] > 0)
    own = own[np.lexsort((clips.starts[rows[own]], clips.files[rows[own]]))]
    files, starts, stops = (
        column[rows[own]] for column in (clips.files, clips.starts, clips.stops)
    )
    found = [np.zeros((0, 2), dtype=np.uint64)]
    step, one = 1, np.arange(len(own))
    while len(one := one[one + step < len(own)]):
        other = one + step
        one = one[(files[one] == files[other]) & (starts[other] < stops[one])]
        pair = own[np.stack([one, one + step], axis=1)]
        value = values.of_row[pair]
        near = signatures.are_near(value[:, 0], value[:, 1])
        found.append(clips.clips[rows[pair[near & (starts[one] < stops[one + step])]]])
        step += 1
    return np.concatenate(found)


def _marks(values: Array, sources: Array) -> Array:
    """Return a hash of each value together with its source.

    A value that gets a second source is compared again, since values of one source are not.
    """
    return values ^ (sources * np.uint64(0x9E3779B97F4A7C15))


def _known(kept: pa.Table) -> Array:
    """Return the values that were all compared with each other, and their sources, (2, v).

    Only what took part in the last run is known. What was away then has not been compared with
    what came meanwhile.
    """
    added, gone = _of(kept, ADDED), _of(kept, GONE)
    events = np.concatenate([added, gone])
    steps = np.concatenate([np.ones(len(added), np.int8), -np.ones(len(gone), np.int8)])
    _, first, place = np.unique(_marks(*events.T), return_index=True, return_inverse=True)
    left = np.zeros(len(first), dtype=np.int64)
    np.add.at(left, place, steps)
    return events[first[left > 0]].T


def _of(kept: pa.Table, what: int) -> Array:
    """Return the entries of one kind, uint64 (n, 2)."""
    rows = kept.filter(pc.field("what") == what)
    return np.stack([rows["one"].to_numpy(), rows["other"].to_numpy()], axis=1)


def _events(what: int, one: Array, other: Array) -> pa.Table:
    return pa.table([np.full(len(one), what, np.int8), one, other], schema=KEPT)


def _files(folder: AnyPath) -> list[AnyPath]:
    """Return the files that count, in order: the last that replaced all before, and later ones."""
    files = list_files(folder, "*.parquet")
    starts = [place for place, file in enumerate(files) if file.name.endswith(ALL)]
    return files[starts[-1] :] if starts else files


def _read_kept(folder: AnyPath) -> pa.Table:
    files = _files(folder)
    return read_files(files, KEPT) if files else KEPT.empty_table()


def _keep(folder: AnyPath, events: pa.Table) -> None:
    """Add a file of what was compared, whole or not at all; of many files one is made.

    Of two processes that add at the same time, the last one's file replaces the other's: what one
    has compared, the other has not.
    """
    if not len(events):
        return
    files = _files(folder)
    number = int(files[-1].name.partition("-")[0]) + 1 if files else 0
    if len(files) < MAX_FILES:
        write_parquet(events, folder / f"{number:08d}-more.parquet")
        return
    every = pa.concat_tables([read_files(files, KEPT), events])
    left = [_events(PAIR, *_of(every, PAIR).T), _events(ADDED, *_known(every))]
    write_parquet(pa.concat_tables(left), folder / f"{number:08d}{ALL}")
    for file in list_files(folder, "*.parquet"):
        if file.name < f"{number:08d}":
            remove(file)
