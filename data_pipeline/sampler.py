"""The order in which training reads the cache: a function of seed and position."""

from collections.abc import Mapping, Sequence

import numpy as np

from magicdistill.data_pipeline.config import Mixture

CYCLE = 1000
"""Samples after which the shares of a mixture are met exactly."""


class Sampler:
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

    def batch(self, step: int, rank: int, world_size: int, batch_size: int) -> list[int]:
        """Return the rows that one rank reads at a step; the ranks' batches lie side by side."""
        first = (step * world_size + rank) * batch_size
        return [self.row(first + offset) for offset in range(batch_size)]


class MixtureSampler:
    """Maps sample positions to rows of several kinds in given shares, without a state as well.

    Every CYCLE positions hold each kind exactly as often as its share says, in an order of their
    own. Each kind goes through its rows in its own epochs, so a small kind comes round more often.
    """

    def __init__(self, kinds: Sequence[str], weights: Mapping[Mixture, float], seed: int) -> None:
        """Take the kind of every row and the weight of every kind; those without one are left out.

        Raises:
            ValueError: if a kind has a weight but no rows, or one below 1/CYCLE of all.
        """
        rows = {name: np.flatnonzero(np.asarray(kinds) == name) for name in weights}
        if empty := [name for name, found in rows.items() if not len(found)]:
            raise ValueError(
                f"mixture_weights.{empty[0]}: the cache has no such rows; leave it out"
            )
        self._rows, self._seed = list(rows.values()), seed
        self._samplers = [Sampler(len(found), seed) for found in self._rows]
        self._counts = _apportion(weights)
        self._cycle = -1
        self._order = np.empty(0, dtype=np.int64)
        self._earlier = np.empty(0, dtype=np.int64)

    def row(self, position: int) -> int:
        """Return the row at a global sample position >= 0."""
        cycle, offset = divmod(position, CYCLE)
        if cycle != self._cycle:
            self._draw(cycle)
        kind = self._order[offset]
        own_position = cycle * int(self._counts[kind]) + int(self._earlier[offset])
        return int(self._rows[kind][self._samplers[kind].row(own_position)])

    def _draw(self, cycle: int) -> None:
        """Set the kinds of a cycle's positions, and how often each was there before."""
        rng = np.random.Generator(np.random.Philox(key=[self._seed, cycle]))
        kinds = np.repeat(np.arange(len(self._counts)), self._counts)
        self._order, self._cycle = rng.permutation(kinds), cycle
        is_kind = self._order[:, None] == np.arange(len(self._counts))
        self._earlier = (is_kind.cumsum(0) - 1)[np.arange(CYCLE), self._order]


def _apportion(weights: Mapping[Mixture, float]) -> np.ndarray:
    """Split CYCLE by the weights into whole numbers, the largest remainders rounded up."""
    values = np.array(list(weights.values()))
    exact = values / values.sum() * CYCLE
    if exact.min() < 1:
        name = list(weights)[int(exact.argmin())]
        raise ValueError(f"mixture_weights.{name}: at least 1/{CYCLE} of all, or leave it out")
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: CYCLE - counts.sum()]] += 1
    return counts
