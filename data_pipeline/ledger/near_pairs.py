"""Find pairs of near bit strings among millions: by locality-sensitive hashing (Indyk and Motwani
1998), which samples bits.

A band is a choice of k of the B bit positions. Two strings that differ in d bits agree in a band
with a probability of (B - d)! (B - k)! / ((B - d - k)! B!), about (1 - d / B)^k, so that of many
bands some show a near pair, and few show a far one. Each band is a join of all strings with
themselves on k bits, made by sorting. The more strings there are, the longer are the bands, which
keeps the work close to linear.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from magicdistill.data_pipeline.ledger.signatures import (
    CHUNK,
    Signatures,
    array_in_a_file,
    distinct,
)
from magicdistill.data_pipeline.rows import Array

EXACT = 1 << 25
"""Up to this number of comparisons, all strings are compared instead of those that share a band."""
MISS = 1e-3
"""Share of the pairs at exactly the limit that may be missed; nearer ones are missed less."""
MAX_BANDS = 1024
"""Largest number of bands, which bounds the work where a policy's limit is very wide."""
MAX_RUN = 100
"""Where more strings share a band's bits, they are compared with the first of them only."""
PAIR_COST = 8.0
"""Time to compare a pair, over the time to sort one string into a band."""
MAX_COMPARED = 1 << 20
"""Pairs that are compared at once."""
MAX_WAITING = 1 << 24
"""Pairs that are collected, with repetitions, before each is kept once."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bands:
    """The bands that find near pairs at the least cost."""

    num_bits: int
    """Bits in a band, k."""
    count: int
    """Number of bands."""
    miss: float
    """Probability that a pair at exactly the limit shares no band."""


def near_pairs(signatures: Signatures, sources: Array, is_new: Array) -> Array:
    """Return pairs of near values, int64 (p, 2), each once with the smaller number first.

    Args:
        signatures: the bit strings; the values' order is that of rank, the best first.
        sources: the source that each value comes from, uint64 (v); 0 where there are several.
            Values of one source are not compared.
        is_new: which values were not compared before, bool (v). Others are not compared with
            each other again.
    """
    if not is_new.any():
        return np.zeros((0, 2), dtype=np.int64)
    new = np.flatnonzero(is_new[signatures.owners])
    exact = len(new) * len(signatures.words) <= EXACT
    found = signatures.near_any(new) if exact else _sharing_a_band(signatures, is_new, sources)
    pairs: list[Array] = []
    num_waiting = 0
    for one, other in found:
        wanted = (one < len(sources)) | (other < len(sources))  # mirrors differ as originals do
        one, other = (signatures.owners[side].astype(np.int64) for side in (one, other))
        wanted &= (one != other) & ((sources[one] != sources[other]) | (sources[one] == 0))
        one, other = one[wanted], other[wanted]
        pairs.append(np.minimum(one, other) << 32 | np.maximum(one, other))
        num_waiting += len(one)
        if num_waiting > MAX_WAITING:
            pairs = [distinct(np.concatenate(pairs))]
            num_waiting = 0
    packed = distinct(np.concatenate(pairs)) if pairs else np.zeros(0, dtype=np.int64)
    return np.stack([packed >> 32, packed & 0xFFFFFFFF], axis=1)


def plan_bands(signatures: Signatures, num_new: int) -> Bands:
    """Choose the length of the bands, and their number, from a sample of the strings."""
    num_strings, num_bits = len(signatures.words), signatures.words.shape[1] * 64
    sample = np.random.default_rng(0).integers(0, num_strings, (2, CHUNK))
    differing = signatures.words[sample[0]] ^ signatures.words[sample[1]]
    far = 1 - np.bitwise_count(differing).sum(axis=1) / num_bits
    num_pairs = num_new * (num_strings - num_new / 2)
    choices = [_bands(k, signatures) for k in range(8, 65)]

    def cost(bands: Bands) -> float:
        by_chance = num_pairs * float(np.mean(far**bands.num_bits))
        return (num_strings + PAIR_COST * by_chance) * bands.count

    return min((b for b in choices if b.miss <= MISS), key=cost, default=choices[0])


def _bands(num_bits: int, signatures: Signatures) -> Bands:
    """Return as many bands of a length as find the pairs at the limit, or as there may be."""
    taken, of = np.arange(num_bits), signatures.words.shape[1] * 64
    agreeing = of - signatures.distances[:, None] - taken
    agree = (np.maximum(agreeing, 0) / (of - taken)).prod(axis=1)
    low, high = 1, MAX_BANDS

    def miss(count: int) -> float:
        return float(signatures.odds @ (1 - agree) ** count)

    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if miss(middle) <= MISS else (middle + 1, high)
    return Bands(num_bits, low, miss(low))


def _sharing_a_band(
    signatures: Signatures, is_new: Array, sources: Array
) -> Iterator[tuple[Array, Array]]:
    """Yield near pairs of strings that share the bits of a band, one of them of a new value."""
    owners = signatures.owners
    is_new_string = is_new[owners]
    bands = plan_bands(signatures, int(is_new_string.sum()))
    logger.info("near copies: %d bands of %d bits", bands.count, bands.num_bits)
    if bands.miss > MISS:
        logger.warning(
            "the limit for near copies is so wide that %.0f%% of those at the limit are missed",
            100 * bands.miss,
        )
    planes = _bit_planes(signatures.words)
    rng = np.random.default_rng(0)
    for _ in range(bands.count):
        positions = rng.permutation(len(planes))[: bands.num_bits]
        for one, other in _runs(_keys(planes[positions], is_new_string), owners, sources):
            yield from _near_among(signatures, one, other, is_new_string, sources)


def _near_among(
    signatures: Signatures, ones: Array, others: Array, is_new: Array, sources: Array
) -> Iterator[tuple[Array, Array]]:
    """Yield those pairs of strings that are near, not both known and of different sources."""
    for start in range(0, len(ones), MAX_COMPARED):
        one, other = ones[start : start + MAX_COMPARED], others[start : start + MAX_COMPARED]
        source = sources[signatures.owners[one]]
        wanted = (source != sources[signatures.owners[other]]) | (source == 0)
        wanted &= is_new[one] | is_new[other]
        one, other = one[wanted], other[wanted]
        near = signatures.are_near(one, other)
        yield one[near], other[near]


def _bit_planes(words: Array) -> Array:
    """Return strings (e, B / 64) as B packed rows of one bit of each, uint8 (B, e / 8)."""
    planes = array_in_a_file(np.uint8, words.shape[1] * 64, -(-len(words) // 8))
    for start in range(0, len(words), CHUNK):
        columns = np.ascontiguousarray(words[start : start + CHUNK].view(np.uint8).T)
        place = slice(start // 8, start // 8 + -(-columns.shape[1] // 8))
        for bit in range(8):
            planes[bit::8, place] = np.packbits(columns & np.uint8(128 >> bit), axis=1)
    return planes


def _keys(planes: Array, is_new: Array) -> Array:
    """Return, sorted, the bits of a band and the string's number, 32 bits each, of those strings
    that may share the bits with a new one."""
    keys = np.empty(len(is_new), dtype=np.uint32)
    for start in range(0, len(is_new), CHUNK):
        part = planes[:, start // 8 : (start + CHUNK) // 8]
        keys[start : start + CHUNK] = _mixed(np.unpackbits(part, axis=1))[: len(keys) - start]
    numbers = np.arange(len(keys), dtype=np.uint32)
    if not is_new.all():
        occurs = np.zeros(1 << 22, dtype=bool)
        occurs[keys[is_new] >> 10] = True
        numbers = numbers[occurs[keys >> 10]]
        keys = keys[numbers]
    keyed = keys.astype(np.uint64)
    keyed <<= np.uint64(32)
    keyed |= numbers
    keyed.sort()
    return keyed


def _mixed(bits: Array) -> Array:
    """Return a number of 32 bits for each column of bits (k, n), by multiplicative hashing."""
    packed = np.zeros((bits.shape[1], 8), dtype=np.uint8)
    for place in range(0, len(bits), 8):
        byte = bits[place].copy()
        for bit in bits[place + 1 : place + 8]:
            byte += byte  # a shift, which NumPy does one by one, takes ten times as long
            byte |= bit
        packed[:, place // 8] = byte
    wide = packed.view(np.uint64)[:, 0] * np.uint64(0x9E3779B97F4A7C15)
    return (wide >> np.uint64(32)).astype(np.uint32)


def _runs(keyed: Array, owners: Array, sources: Array) -> Iterator[tuple[Array, Array]]:
    """Yield pairs of strings within each run of equal keys, of runs with more than one source."""
    keys = (keyed >> np.uint64(32)).astype(np.uint32)
    repeats = np.zeros(len(keys) + 1, dtype=bool)
    repeats[1:-1] = keys[1:] == keys[:-1]
    shared = np.flatnonzero(repeats[1:] | repeats[:-1])
    if not len(shared):
        return
    strings = (keyed[shared] & np.uint64(0xFFFFFFFF)).astype(np.int64)
    starts = np.flatnonzero(~repeats[shared])
    lengths = np.diff(np.append(starts, len(shared)))
    source = sources[owners[strings]]
    one_source = np.minimum.reduceat(source, starts)
    one_source = (one_source == np.maximum.reduceat(source, starts)) & (one_source > 0)
    start = np.repeat(starts, lengths)
    places = np.arange(len(shared)) - start
    left = np.flatnonzero((places > 0) & ~np.repeat(one_source, lengths))
    for first in range(MAX_RUN):
        if not len(left):
            return
        yield strings[start[left] + first], strings[left]
        left = left[places[left] > first + 1]
