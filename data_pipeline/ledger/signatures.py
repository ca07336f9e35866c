"""Bit strings by which near values are found among millions: hashes, and signs of embeddings."""

from collections.abc import Iterator
from dataclasses import dataclass
from tempfile import TemporaryFile

import numpy as np

from magicdistill.data_pipeline.rows import Array

CHUNK = 1 << 16
"""Values that are derived at once; also the number of comparisons at once, in units of 16."""
NUM_SIGNS = 512
"""Bits that stand for an embedding."""
NUM_SAMPLED = 4096
"""Embeddings whose mean is taken for the mean of all."""


@dataclass(frozen=True)
class Signatures:
    """Bit strings that stand for values, of which some have a second one, of their mirror image."""

    words: Array
    """The strings, uint64 (e, B / 64): those of all values in order, then those of mirrors."""
    owners: Array
    """The value that each string stands for, uint32 (e)."""
    distances: Array
    """Numbers of bits in which a pair at exactly the limit may differ, int64 (r)."""
    odds: Array
    """Probabilities of those numbers, float64 (r)."""
    max_distance: float
    """Number of bits in which near strings differ at most."""

    def are_near(self, one: Array, other: Array) -> Array:
        """Tell which pairs of strings, given by their numbers, are within the limit."""
        distances = np.bitwise_count(self.words[one] ^ self.words[other]).sum(1, dtype=np.uint16)
        return distances <= self.max_distance

    def near_any(self, new: Array) -> Iterator[tuple[Array, Array]]:
        """Yield all near pairs of one of the `new` strings and any string."""
        columns = np.ascontiguousarray(self.words.T)
        step = max(1, CHUNK * 16 // len(self.words))
        for start in range(0, len(new), step):
            block = new[start : start + step]
            distances = np.zeros((len(block), len(self.words)), dtype=np.uint16)
            for column in columns:
                distances += np.bitwise_count(column[block, None] ^ column)
            ones, others = np.nonzero(distances <= self.max_distance)
            yield block[ones], others


@dataclass(frozen=True)
class SignsOfEmbeddings(Signatures):
    """Signs of random projections (Charikar 2002), behind which the embeddings decide."""

    vectors: Array
    """The embeddings, float16 (v, d)."""
    min_cosine: float
    """Cosine from which two embeddings are near."""

    def are_near(self, one: Array, other: Array) -> Array:
        """Tell which pairs of strings stand for embeddings within the limit."""
        near = super().are_near(one, other)
        at = np.flatnonzero(near)
        for start in range(0, len(at), CHUNK):
            part = at[start : start + CHUNK]
            units = _units(self.vectors[one[part]]), _units(self.vectors[other[part]])
            near[part] = np.einsum("nd,nd->n", *units) >= self.min_cosine
        return near

    def near_any(self, new: Array) -> Iterator[tuple[Array, Array]]:
        """Yield all pairs of near embeddings, one of which is among the `new` ones."""
        units = _units(self.vectors)
        step = max(1, CHUNK * 16 // len(units))
        for start in range(0, len(new), step):
            block = new[start : start + step]
            ones, others = np.nonzero(units[block] @ units.T >= self.min_cosine)
            yield block[ones], others


def hash_signatures(words: Array, owners: Array, max_bits: float) -> Signatures:
    """Return the strings of perceptual hashes.

    Args:
        words: hashes of all values' frames, then of the mirrored frames of those values that have
            them, uint64 (e, frames).
        owners: the value that each row belongs to, uint32 (e).
        max_bits: mean distance of two hashes up to which values are near.
    """
    most = max_bits * words.shape[1]
    return Signatures(words, owners, np.array([int(most)]), np.ones(1), most)


def embedding_signatures(vectors: Array, min_cosine: float) -> SignsOfEmbeddings:
    """Return the strings of embeddings (v, d).

    Embeddings of images lie in a narrow cone, where signs hardly differ; so they are projected
    from their mean. Seen from there the angle between two near ones is larger, and largest for
    those close to the mean: the angle at the nearest twentieth is the one to be found.
    """
    sample = _units(vectors[:: max(1, len(vectors) // NUM_SAMPLED)])
    mean = sample.mean(axis=0)
    radius = np.quantile(np.linalg.norm(sample - mean, axis=1), 0.05)
    chord = np.sqrt(max(0.0, 2 - 2 * min_cosine))
    rate = np.arcsin(min(1.0, chord / max(float(radius), 1e-12))) / np.pi
    planes = np.random.default_rng(0).standard_normal((vectors.shape[1], NUM_SIGNS), np.float32)
    words = array_in_a_file(np.uint64, len(vectors), NUM_SIGNS // 64)
    for start in range(0, len(vectors), CHUNK):
        signs = _units(vectors[start : start + CHUNK]) @ planes > mean @ planes
        words[start : start + CHUNK] = np.packbits(signs, axis=1).view(np.uint64)
    spread = np.sqrt(NUM_SIGNS * rate * (1 - rate))
    return SignsOfEmbeddings(
        words=words,
        owners=np.arange(len(vectors), dtype=np.uint32),
        distances=np.arange(NUM_SIGNS + 1),
        odds=_binomial(NUM_SIGNS, rate),
        max_distance=NUM_SIGNS * rate + 4 * spread,
        vectors=vectors,
        min_cosine=min_cosine,
    )


def distinct(items: Array) -> Array:
    """Return the different items in order, by sorting, which takes a tenth of np.unique's time."""
    ordered = np.sort(items, axis=None)
    is_first = np.ones(len(ordered), dtype=bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    return ordered[is_first]


def array_in_a_file(kind: type, *shape: int) -> Array:
    """Return an array in a temporary file, which the system may write out where memory is short."""
    with TemporaryFile() as file:
        return np.memmap(file, kind, "w+", shape=shape)


def _units(vectors: Array) -> Array:
    wide = vectors.astype(np.float32)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)


def _binomial(count: int, rate: float) -> Array:
    """Return the probabilities of 0 to `count` successes at a rate between 0 and 1."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    hits, rate = np.arange(count + 1), min(max(rate, 1e-12), 1 - 1e-12)
    chances = logs[count] - logs - logs[::-1]
    return np.exp(chances + hits * np.log(rate) + (count - hits) * np.log(1 - rate))
