"""Find clips that are copies of others, across all sources and runs."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa

from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.rows import Array, ClipRow, Video

BLOCK = 1024
"""Number of embeddings that are compared with all earlier ones in one matrix product."""
COMPARED = ("embedding", "phash")
"""Kinds of the scorers whose blobs are compared to find near copies."""


@dataclass(frozen=True)
class Copy:
    """Says of which clip another one is a copy, and how that was found."""

    of: ClipRow
    """The clip that is repeated."""
    how: str
    """`the same file`, `embedding` or `pHash`."""
    is_held_out: bool = False
    """Whether `of` is a held-out clip."""

    def __str__(self) -> str:
        place = " in the held-out clips" if self.is_held_out else ""
        return f"of {self.of.video.source_id}{place} by {self.how}"


def copies_among(
    clips: Sequence[ClipRow],
    max_hash_bits: float,
    min_cosine: float,
    held_out: Sequence[ClipRow] = (),
) -> dict[str, Copy]:
    """Return the clips that are copies of a better one, by clip id.

    The better copy is the larger, then the less blurred, then the longer one; what was scored
    first does not matter, so that many runs find what one run finds. Clips that share a source
    are copies only where they overlap in one file. A held-out clip is better than any other: what
    shares frames of a file with it, or looks like it, is its copy, even if both are moments of one
    source.

    Args:
        clips: all clips that may be kept, whichever run has scored them.
        max_hash_bits: mean distance of 64-bit hashes up to which clips are copies.
        min_cosine: cosine of embeddings from which clips are copies; where a clip has an
            embedding, its hashes are not looked at.
        held_out: clips of which none of these may be a copy.

    Returns:
        For each copy the clip that it repeats. That clip is kept, except where it is itself a near
        copy of a third clip, which then stands for all of them.
    """
    copies = _sharing(clips, held_out)
    ranked = sorted((clip for clip in clips if clip.clip_id not in copies), key=_rank)
    originals: dict[tuple[object, ...], ClipRow] = {}
    for clip in ranked:
        content = (clip.content_hash, clip.start, clip.stop, clip.crop, clip.video.time_scale)
        original = originals.setdefault(content, clip) if clip.content_hash else clip
        if original is not clip:
            copies[clip.clip_id] = Copy(original, "the same file")
    rest = [clip for clip in ranked if clip.clip_id not in copies]
    embedded = [clip for clip in rest if "embedding" in clip.blobs]
    hashed = [clip for clip in rest if "phash" in clip.blobs and "embedding" not in clip.blobs]
    if embedded:
        first = [clip for clip in held_out if "embedding" in clip.blobs]
        index = _Embeddings([*first, *embedded], min_cosine)
        copies |= _near(first, embedded, index, "embedding")
    if hashed:
        first = [clip for clip in held_out if "phash" in clip.blobs]
        copies |= _near(first, hashed, _Hashes([*first, *hashed], max_hash_bits), "pHash")
    return copies


def _sharing(clips: Sequence[ClipRow], held_out: Sequence[ClipRow]) -> dict[str, Copy]:
    """Return the clips whose frames overlap those of a held-out clip in the same file."""
    by_content: dict[str, list[ClipRow]] = defaultdict(list)
    for clip in held_out:
        by_content[clip.content_hash].append(clip)
    return {
        clip.clip_id: Copy(other, "the same file", is_held_out=True)
        for clip in clips
        if clip.content_hash
        for other in by_content.get(clip.content_hash, ())
        if _overlap(clip, other)
    }


def _rank(clip: ClipRow) -> tuple[object, ...]:
    blur = clip.scores.get("blur.effect") or 0.0
    return (
        -clip.width * clip.height,
        blur,
        clip.start - clip.stop,
        clip.video.source_id,
        clip.clip_id,
    )


def _near(
    held_out: Sequence[ClipRow],
    ranked: Sequence[ClipRow],
    index: "_Embeddings | _Hashes",
    how: str,
) -> dict[str, Copy]:
    """Return the near copies among ranked clips; in the index the held-out clips come first."""
    copies: dict[str, Copy] = {}
    clips, num_held_out = [*held_out, *ranked], len(held_out)
    for position, clip in enumerate(clips):
        originals = (
            Copy(clips[other], how, is_held_out=other < num_held_out)
            for other in index.similar(position)
            if other < num_held_out or not _are_neighbours(clip, clips[other])
        )
        original = next(originals, None)
        if position < num_held_out or original is None:
            index.keep(position)
        else:
            copies[clip.clip_id] = original
    return copies


def _are_neighbours(one: ClipRow, other: ClipRow) -> bool:
    """Tell whether two clips are different moments of one source, which may look alike."""
    if one.video.source_id != other.video.source_id:
        return False
    return one.video.uri != other.video.uri or not _overlap(one, other)


def _overlap(one: ClipRow, other: ClipRow) -> bool:
    """Tell whether two clips of one file have frames in common."""
    return one.start < other.stop and other.start < one.stop


class _Hashes:
    """Finds kept clips with a near hash by a table of 16-bit pieces, instead of all comparisons.

    Near hashes have some piece in common, so only clips that share a piece are compared. With the
    default limit of 6 of 64 bits, two clips at exactly that distance share none of the 32 pieces
    of their eight hashes once in 1,700 times, and closer ones hardly ever.
    """

    def __init__(self, clips: Sequence[ClipRow], max_bits: float) -> None:
        hashes = np.stack([np.frombuffer(clip.blobs["phash"], np.uint8) for clip in clips])
        self._words = np.ascontiguousarray(hashes).view(np.uint64)
        self._max_distance = max_bits * self._words.shape[1]
        order = np.random.default_rng(0).permutation(hashes.shape[1] * 8)
        mixed = np.unpackbits(hashes, axis=1)[
            :, order
        ]  # neighbouring bits are correlated, which would spoil the odds
        self._pieces = np.ascontiguousarray(np.packbits(mixed, axis=1)).view(np.uint16)
        self._kept: list[dict[int, list[int]]] = [{} for _ in range(self._pieces.shape[1])]

    def similar(self, position: int) -> list[int]:
        """Return the kept clips that a clip is a copy of, ascending."""
        pieces = self._pieces[position].tolist()
        found = set().union(
            *(kept.get(piece, ()) for kept, piece in zip(self._kept, pieces, strict=True))
        )
        candidates = np.array(sorted(found), dtype=int)
        difference = self._words[candidates] ^ self._words[position]
        distances = np.bitwise_count(difference).sum(axis=1)
        return candidates[distances <= self._max_distance].tolist()

    def keep(self, position: int) -> None:
        """Let later clips be compared with this one."""
        for kept, piece in zip(self._kept, self._pieces[position].tolist(), strict=True):
            kept.setdefault(piece, []).append(position)


class _Embeddings:
    """Finds kept clips with a near embedding, one matrix product for each BLOCK of clips."""

    def __init__(self, clips: Sequence[ClipRow], min_cosine: float) -> None:
        vectors = np.stack([np.frombuffer(clip.blobs["embedding"], np.float16) for clip in clips])
        wide = vectors.astype(np.float32)
        self._units = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
        self._min_cosine = min_cosine
        self._kept = np.zeros(len(clips), dtype=bool)
        self._block: Array = np.zeros((0, 0), dtype=np.float32)

    def similar(self, position: int) -> list[int]:
        """Return the kept clips that a clip is a copy of, ascending; ask for positions in order."""
        if position % BLOCK == 0:
            block = self._units[position : position + BLOCK]
            self._block = block @ self._units[: position + BLOCK].T
        cosines = self._block[position % BLOCK]
        return np.flatnonzero(self._kept[: len(cosines)] & (cosines >= self._min_cosine)).tolist()

    def keep(self, position: int) -> None:
        """Let later clips be compared with this one."""
        self._kept[position] = True


def find_copies(
    db: duckdb.DuckDBPyConnection,
    candidates: str,
    held_out: str,
    taken_down: str,
    max_hash_bits: float,
    min_cosine: float,
    kept: AnyPath | None,
) -> pa.Table:
    """Return the clips of a table that are copies, as (clip_id, of_clip_id, of_source_id, how,
    is_held_out)."""
    found = copies_among(_clips(db, candidates), max_hash_bits, min_cosine, _clips(db, held_out))
    rows = [
        {
            "clip_id": clip_id,
            "of_clip_id": copy.of.clip_id,
            "of_source_id": copy.of.video.source_id,
            "how": copy.how,
            "is_held_out": copy.is_held_out,
        }
        for clip_id, copy in found.items()
    ]
    texts = ("clip_id", "of_clip_id", "of_source_id", "how")
    schema = pa.schema([*((text, pa.string()) for text in texts), ("is_held_out", pa.bool_())])
    return pa.Table.from_pylist(rows, schema=schema)


def _clips(db: duckdb.DuckDBPyConnection, view: str) -> list[ClipRow]:
    rows = db.sql(f"FROM {view} ORDER BY ordinal").to_arrow_table().to_pylist()
    return [
        ClipRow(
            row["clip_id"],
            Video("", row["source_id"], row["uri"], "", "", "", "", time_scale=row["time_scale"]),
            "",
            start=row["start"],
            stop=row["stop"],
            content_hash=row["content_hash"],
            width=row["width"],
            height=row["height"],
            crop=tuple(row["crop"]),
            scores={"blur.effect": row["blur"]},
            blobs={kind: row[kind] for kind in COMPARED if row[kind] is not None},
        )
        for row in rows
    ]
