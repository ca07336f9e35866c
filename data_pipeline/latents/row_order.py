"""The order in which training reads the cache: a function of seed and position."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from magicdistill.data_pipeline.sources.base import Mixture

CYCLE = 1000
"""Number of draws that hold every kind exactly as often as its share says."""
ANY: Mixture = "general"
"""Stands for all kinds where the recipe gives no weights."""


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


class MixtureOrder:
    """Maps sample positions to rows of several kinds in given shares; stateless, like `RowOrder`.

    Every CYCLE positions hold each kind exactly as often as its share says, in a random order that
    differs from cycle to cycle. Each kind goes through its rows in its own epochs, so the rows of
    a small kind with a large share repeat more often.
    """

    def __init__(self, kinds: Sequence[str], weights: Mapping[Mixture, float], seed: int) -> None:
        """Take the kind of every row and the weight of every kind.

        Rows of a kind without a weight are never drawn.

        Raises:
            ValueError: if a kind has a weight but no rows.
        """
        self._rows = [np.flatnonzero(np.asarray(kinds) == name) for name in weights]
        self._orders = [RowOrder(len(found), seed) for found in self._rows]
        self._shares = ShareOrder(list(weights.values()), seed)

    def row(self, position: int) -> int:
        """Return the row at a global sample position >= 0."""
        kind, own_position = self._shares(position)
        return int(self._rows[kind][self._orders[kind].row(own_position)])


class BucketOrder:
    """Maps sample positions to rows so that all rows of a batch have one bucket; stateless.

    A bucket's share of the batches is the summed weight of its rows, where a kind's weight is
    divided equally among the kind's rows. Over all buckets each kind is therefore drawn as often
    as its weight says. Each bucket goes through its rows in its own epochs.
    """

    def __init__(
        self,
        buckets: Sequence[str],
        kinds: Sequence[str],
        weights: Mapping[Mixture, float],
        batch_size: int,
        seed: int,
    ) -> None:
        """Take the bucket and the kind of every row, and the weight of every kind.

        `batch_size` is the number of consecutive positions that share a bucket.
        """
        self._batch_size = batch_size
        self._rows: list[np.ndarray] = []
        self._orders: list[MixtureOrder] = []
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
                self._orders.append(MixtureOrder(own_kinds, own, seed))
                shares.append(sum(own.values()))
        self._shares = ShareOrder(shares, seed, stream=2)

    def row(self, position: int) -> int:
        """Return the row at a global sample position >= 0."""
        batch, offset = divmod(position, self._batch_size)
        bucket, own_batch = self._shares(batch)
        own_position = own_batch * self._batch_size + offset
        return int(self._rows[bucket][self._orders[bucket].row(own_position)])


def open_row_order(
    index: pa.Table, weights: Mapping[Mixture, float], batch_size: int, seed: int
) -> RowOrder | MixtureOrder | BucketOrder:
    """Return the order of a cache's rows in which every batch of training has one bucket.

    Args:
        index: columns `bucket` and `mixture`, one entry for each row.
        weights: how often each kind is drawn; if empty, all rows are drawn equally often.
        batch_size: number of consecutive positions that need one bucket: those of one update on
            all ranks.
        seed: another seed gives another order.

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
        return BucketOrder(index["bucket"].to_pylist(), kinds, shares, batch_size, seed)
    return MixtureOrder(kinds, shares, seed)


def _demand_rows(kinds: Sequence[str], weights: Mapping[Mixture, float]) -> None:
    if empty := [name for name in weights if name not in kinds]:
        raise ValueError(f"mixture_weights.{empty[0]}: the cache has no such rows; leave it out")
    least = min(weights, key=lambda name: weights[name])
    if weights[least] / sum(weights.values()) * CYCLE < 1:
        raise ValueError(f"mixture_weights.{least}: at least 1/{CYCLE} of all, or leave it out")


class ShareOrder:
    """Maps draws to choices in given shares; stateless, like `RowOrder`.

    Every cycle holds each choice exactly as often as its share of CYCLE draws says, but at least
    once, in a random order that differs from cycle to cycle.
    """

    def __init__(self, shares: Sequence[float], seed: int, stream: int = 0) -> None:
        """Take the share of every choice; two streams of one seed have independent orders."""
        self._counts = _apportion(shares)
        self._length = int(self._counts.sum())
        self._seed, self._stream = seed, stream
        self._cycle = -1
        self._order = np.empty(0, dtype=np.int64)
        self._earlier = np.empty(0, dtype=np.int64)

    def __call__(self, draw: int) -> tuple[int, int]:
        """Return the choice of a draw >= 0, and how often it was chosen before."""
        cycle, offset = divmod(draw, self._length)
        if cycle != self._cycle:
            self._draw(cycle)
        choice = int(self._order[offset])
        return choice, cycle * int(self._counts[choice]) + int(self._earlier[offset])

    def _draw(self, cycle: int) -> None:
        """Set the choices of a cycle's draws, and how often each was chosen earlier in it."""
        bits = np.random.Philox(key=[self._seed, cycle], counter=[0, 0, 0, self._stream])
        choices = np.repeat(np.arange(len(self._counts)), self._counts)
        self._order, self._cycle = np.random.Generator(bits).permutation(choices), cycle
        is_choice = self._order[:, None] == np.arange(len(self._counts))
        self._earlier = (is_choice.cumsum(0) - 1)[np.arange(len(choices)), self._order]


def _apportion(shares: Sequence[float]) -> np.ndarray:
    """Split CYCLE by the shares into whole numbers, each at least 1.

    The largest remainders are rounded up until the numbers add up to CYCLE; zeros then become
    ones, so the sum may be larger.
    """
    values = np.array(shares)
    exact = values / values.sum() * CYCLE
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: CYCLE - counts.sum()]] += 1
    return np.maximum(counts, 1)
