"""The order in which training reads the cache: a function of seed and position."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from magicdistill.data_pipeline.sources.config import Mixture

CYCLE = 1000
"""Turns after which shares are met exactly."""
ANY: Mixture = "general"
"""Stands for all kinds where they are not told apart."""


class RowOrder:
    """Maps sample positions to rows, every epoch in a permutation of its own.

    The state of training is one integer, the position of the next sample; resuming, or going on
    with another number of ranks, replays the same order.
    """

    def __init__(self, num_rows: int, seed: int) -> None:
        if num_rows < 1:
            raise ValueError("cannot sample from an empty cache")
        self._num_rows = num_rows
        self._seed = seed
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def row(self, position: int) -> int:
        """Return the row at a global sample position >= 0."""
        epoch, offset = divmod(position, self._num_rows)
        if epoch != self._epoch:
            rng = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
            self._order, self._epoch = rng.permutation(self._num_rows), epoch
        return int(self._order[offset])


class MixtureSampler:
    """Maps sample positions to rows of several kinds in given shares, without a state as well.

    Every CYCLE positions hold each kind exactly as often as its share says, in an order of their
    own. Each kind goes through its rows in its own epochs, so a small kind comes round more often.
    """

    def __init__(self, kinds: Sequence[str], weights: Mapping[Mixture, float], seed: int) -> None:
        """Take the kind of every row and the weight of every kind; those without one are left out.

        Raises ValueError if a kind has a weight but no rows.
        """
        self._rows = [np.flatnonzero(np.asarray(kinds) == name) for name in weights]
        self._samplers = [RowOrder(len(found), seed) for found in self._rows]
        self._turns = Turns(list(weights.values()), seed)

    def row(self, position: int) -> int:
        """Return the row at a global sample position >= 0."""
        kind, own_position = self._turns(position)
        return int(self._rows[kind][self._samplers[kind].row(own_position)])


class BucketSampler:
    """Maps sample positions to rows, whole batches to rows of one bucket, without a state as well.

    Every cycle of batches holds each bucket as often as its rows weigh, and each bucket goes
    through its rows in its own epochs. A kind is spread over the buckets as its rows are: in all
    it is drawn as often as its weight says.
    """

    def __init__(
        self,
        buckets: Sequence[str],
        kinds: Sequence[str],
        weights: Mapping[Mixture, float],
        batch_size: int,
        seed: int,
    ) -> None:
        """Take bucket and kind of every row and the weight of every kind, as `MixtureSampler`."""
        self._batch_size = batch_size
        self._rows: list[np.ndarray] = []
        self._samplers: list[MixtureSampler] = []
        names, totals, shares = np.asarray(buckets), Counter(kinds), []
        for name in sorted(set(buckets)):
            rows = np.flatnonzero(names == name)
            own_kinds = [kinds[row] for row in rows.tolist()]
            counts = Counter(own_kinds)
            own: dict[Mixture, float] = {
                kind: weight * counts[kind] / totals[kind]
                for kind, weight in weights.items()
                if counts[kind]
            }
            if own:
                self._rows.append(rows)
                self._samplers.append(MixtureSampler(own_kinds, own, seed))
                shares.append(sum(own.values()))
        self._turns = Turns(shares, seed, stream=2)

    def row(self, position: int) -> int:
        """Return the row at a global sample position >= 0."""
        batch, offset = divmod(position, self._batch_size)
        bucket, own_batch = self._turns(batch)
        own_position = own_batch * self._batch_size + offset
        return int(self._rows[bucket][self._samplers[bucket].row(own_position)])


def open_row_order(
    index: pa.Table, weights: Mapping[Mixture, float], batch_size: int, seed: int
) -> RowOrder | MixtureSampler | BucketSampler:
    """Return the order of a cache's rows in which every batch of training has one bucket.

    Args:
        index: `bucket` and `mixture` of every row.
        weights: how often each kind is drawn; without any all rows are drawn alike.
        batch_size: positions that need the same bucket: those of one update on all ranks.
        seed: of the order.

    Raises:
        ValueError: if a kind has a weight but no rows, or one below 1/CYCLE of all.
    """
    has_buckets = len(index["bucket"].unique()) > 1
    if not weights and not has_buckets:
        return RowOrder(len(index), seed)
    kinds = index["mixture"].to_pylist() if weights else [ANY] * len(index)
    shares = weights or {ANY: 1.0}
    _demand_rows(kinds, shares)
    if has_buckets:
        return BucketSampler(index["bucket"].to_pylist(), kinds, shares, batch_size, seed)
    return MixtureSampler(kinds, shares, seed)


def _demand_rows(kinds: Sequence[str], weights: Mapping[Mixture, float]) -> None:
    if empty := [name for name in weights if name not in kinds]:
        raise ValueError(f"mixture_weights.{empty[0]}: the cache has no such rows; leave it out")
    least = min(weights, key=lambda name: weights[name])
    if weights[least] / sum(weights.values()) * CYCLE < 1:
        raise ValueError(f"mixture_weights.{least}: at least 1/{CYCLE} of all, or leave it out")


class Turns:
    """Deals turns out to parts in given shares, without a state as well.

    Every cycle holds each part exactly as often as its share of CYCLE turns says, but at least
    once, in an order of its own.
    """

    def __init__(self, shares: Sequence[float], seed: int, stream: int = 0) -> None:
        """Take the parts' shares; turns of the same seed in another stream have other orders."""
        self._counts = _apportion(shares)
        self._length = int(self._counts.sum())
        self._seed, self._stream = seed, stream
        self._cycle = -1
        self._order = np.empty(0, dtype=np.int64)
        self._earlier = np.empty(0, dtype=np.int64)

    def __call__(self, turn: int) -> tuple[int, int]:
        """Return the part that has a turn >= 0, and how many it had before."""
        cycle, offset = divmod(turn, self._length)
        if cycle != self._cycle:
            self._draw(cycle)
        part = int(self._order[offset])
        return part, cycle * int(self._counts[part]) + int(self._earlier[offset])

    def _draw(self, cycle: int) -> None:
        """Set the parts of a cycle's turns, and how often each was there before."""
        bits = np.random.Philox(key=[self._seed, cycle], counter=[0, 0, 0, self._stream])
        parts = np.repeat(np.arange(len(self._counts)), self._counts)
        self._order, self._cycle = np.random.Generator(bits).permutation(parts), cycle
        is_part = self._order[:, None] == np.arange(len(self._counts))
        self._earlier = (is_part.cumsum(0) - 1)[np.arange(len(parts)), self._order]


def _apportion(shares: Sequence[float]) -> np.ndarray:
    """Split CYCLE by the shares into whole numbers, the largest remainders rounded up and zeros
    made ones."""
    values = np.array(shares)
    exact = values / values.sum() * CYCLE
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: CYCLE - counts.sum()]] += 1
    return np.maximum(counts, 1)
