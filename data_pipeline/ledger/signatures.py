"""Bit strings by which near values are found among millions: hashes, and signs of embeddings."""

from collections.abc import Iterator
from dataclasses import dataclass

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
    """The value that each string stands for, int64 (e)."""
    rates: Array
    """Shares of the bits in which a pair at exactly the limit may differ, float64 (r)."""
    odds: Array
    """Probabilities of those shares, float64 (r)."""
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
        owners: the value that each row belongs to, int64 (e).
        max_bits: mean distance of two hashes up to which values are near.
    """
    rates = np.array([max_bits / 64])
    return Signatures(words, owners, rates, np.ones(1), max_bits * words.shape[1])


def embedding_signatures(vectors: Array, min_cosine: float, words: Array) -> SignsOfEmbeddings:
    """Return the strings of embeddings (v, d), which are written to `words`, uint64 (v, B / 64).

    Embeddings of images lie in a narrow cone, where signs hardly differ; so they are projected
    from their mean. Seen from there the angle between two near ones is larger, and largest for
    those close to the mean: the angle at the nearest twentieth is the one to be found.
    """
    sample = _units(vectors[:: max(1, len(vectors) // NUM_SAMPLED)])
    mean = sample.mean(axis=0)
    radius = np.quantile(np.linalg.norm(sample - mean, axis=1), 0.05)
    chord = np.sqrt(max(0.0, 2 - 2 * min_cosine))
    rate = np.arcsin(min(1.0, chord / max(float(radius), 1e-12))) / np.pi
    rng = np.random.default_rng(0)
    num_bits = words.shape[1] * 64
    planes = rng.standard_normal((vectors.shape[1], num_bits), dtype=np.float32)
    for start in range(0, len(vectors), CHUNK):
        signs = _units(vectors[start : start + CHUNK]) @ planes > mean @ planes
        words[start : start + CHUNK] = np.packbits(signs, axis=1).view(np.uint64)
    differing = np.arange(num_bits + 1)
    spread = np.sqrt(num_bits * rate * (1 - rate))
    return SignsOfEmbeddings(
        words=words,
        owners=np.arange(len(vectors)),
        rates=differing / num_bits,
        odds=_binomial(num_bits, rate),
        max_distance=num_bits * rate + 4 * spread,
        vectors=vectors,
        min_cosine=min_cosine,
    )


def _units(vectors: Array) -> Array:
    wide = vectors.astype(np.float32)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)


def _binomial(count: int, rate: float) -> Array:
    """Return the probabilities of 0 to `count` successes at a rate between 0 and 1."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    hits, rate = np.arange(count + 1), min(max(rate, 1e-12), 1 - 1e-12)
    chances = logs[count] - logs - logs[::-1]
    return np.exp(chances + hits * np.log(rate) + (count - hits) * np.log(1 - rate))
