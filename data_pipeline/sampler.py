"""The order in which training reads the cache: a function of seed and position."""

import numpy as np


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
