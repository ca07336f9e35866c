"""Find copies of clips, whoever listed them and whenever they were scored."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from magicdistill.data_pipeline.clips import Array, ClipRow

BLOCK = 1024


@dataclass(frozen=True)
class Copy:
    """A clip that shows what another one shows."""

    of: ClipRow
    how: str


def find_copies(
    clips: Sequence[ClipRow], max_hash_bits: float, min_cosine: float
) -> dict[str, Copy]:
    """Return the clips that are copies of a better one, by clip id.

    The better copy is the larger, then the less blurred, then the longer one; what was scored
    first does not matter, so that many runs find what one run finds. Clips that share a source
    are copies only where they overlap in one file.

    Args:
        clips: all clips that may be kept, from this run and earlier ones.
        max_hash_bits: mean distance of 64-bit hashes up to which clips are copies.
        min_cosine: cosine of embeddings from which clips are copies; where a clip has an
            embedding, its hashes are not looked at.

    Returns:
        For each copy the clip that it repeats. That is kept, but for one case: what has an exact
        copy may be a near copy of a third clip, which then stands for all of them.
    """
    ranked = sorted(clips, key=_rank)
    copies: dict[str, Copy] = {}
    originals: dict[tuple[object, ...], ClipRow] = {}
    for clip in ranked:
        content = (clip.content_hash, clip.start, clip.stop, clip.crop, clip.time_scale)
        original = originals.setdefault(content, clip) if clip.content_hash else clip
        if original is not clip:
            copies[clip.clip_id] = Copy(original, "the same file")
    rest = [clip for clip in ranked if clip.clip_id not in copies]
    embedded = [clip for clip in rest if "embedding" in clip.blobs]
    hashed = [clip for clip in rest if "phash" in clip.blobs and "embedding" not in clip.blobs]
    if embedded:
        copies |= _near(embedded, _Embeddings(embedded, min_cosine), "embedding")
    if hashed:
        copies |= _near(hashed, _Hashes(hashed, max_hash_bits), "pHash")
    return copies


def _rank(clip: ClipRow) -> tuple[object, ...]:
    blur = clip.scores.get("blur.effect") or 0.0
    return (-clip.width * clip.height, blur, clip.start - clip.stop, clip.source_id, clip.clip_id)


def _near(clips: Sequence[ClipRow], index: "_Embeddings | _Hashes", how: str) -> dict[str, Copy]:
    copies: dict[str, Copy] = {}
    for position, clip in enumerate(clips):
        similar = [clips[other] for other in index.similar(position)]
        original = next((other for other in similar if not _are_neighbours(clip, other)), None)
        if original is None:
            index.keep(position)
        else:
            copies[clip.clip_id] = Copy(original, how)
    return copies


def _are_neighbours(one: ClipRow, other: ClipRow) -> bool:
    """Tell whether clips are different moments of one source."""
    if one.source_id != other.source_id:
        return False
    return one.uri != other.uri or one.stop <= other.start or other.stop <= one.start


class _Hashes:
    """Kept clips by 16-bit pieces of their hashes, of which near duplicates share some.

    With the default of 6 of 64 bits, two clips at that very distance share none of the 32 pieces
    of eight hashes once in 1,700 times, and closer ones hardly ever.
    """

    def __init__(self, clips: Sequence[ClipRow], max_bits: float) -> None:
        hashes = np.stack([np.frombuffer(clip.blobs["phash"], np.uint8) for clip in clips])
        self._words = np.ascontiguousarray(hashes).view(np.uint64)
        self._max_distance = max_bits * self._words.shape[1]
        order = np.random.default_rng(0).permutation(hashes.shape[1] * 8)
        mixed = np.unpackbits(hashes, axis=1)[:, order]  # neighbouring bits resemble each other
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
    """Kept clips by their embeddings, compared in blocks."""

    def __init__(self, clips: Sequence[ClipRow], min_cosine: float) -> None:
        vectors = np.stack([np.frombuffer(clip.blobs["embedding"], np.float16) for clip in clips])
        wide = vectors.astype(np.float32)
        self._units = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
        self._min_cosine = min_cosine
        self._kept = np.zeros(len(clips), dtype=bool)
        self._block: Array = np.zeros((0, 0), dtype=np.float32)

    def similar(self, position: int) -> list[int]:
        """Return the kept clips that a clip is a copy of, ascending; positions come in order."""
        if position % BLOCK == 0:
            block = self._units[position : position + BLOCK]
            self._block = block @ self._units[: position + BLOCK].T
        cosines = self._block[position % BLOCK]
        return np.flatnonzero(self._kept[: len(cosines)] & (cosines >= self._min_cosine)).tolist()

    def keep(self, position: int) -> None:
        """Let later clips be compared with this one."""
        self._kept[position] = True
