"""The average of a role's weights that is sampled and exported in place of the last ones."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from magicdistill.platform.checkpoints.engine_state import shape_of, trainable
from magicdistill.platform.checkpoints.flat_shards import (
    WEIGHT,
    FlatShard,
    FlatShardReader,
    Snapshot,
    take_snapshot,
)
from magicdistill.platform.engines.engine import Engine


class Ema:
    """Exponential moving average of a role's master weights, each rank of its own part."""

    def __init__(self, role: str, engine: Engine, decay: float, start: int = 0) -> None:
        """Average from cycle `start` on; until then the average is the present weights."""
        self.role, self.engine, self.decay, self.start = role, engine, decay, start
        self.places = engine.places()
        self.live = [place.piece(WEIGHT, place.owner).values for place in self.places]
        self.average = [values.clone() for values in self.live]

    def snapshot(self) -> Snapshot:
        """Copy the average; called on every rank."""
        shapes = {name: shape_of(p) for name, p in trainable(self.engine.module).items()}
        replicated = self.engine.is_replicated
        return take_snapshot(self._flat_shards(), shapes, {}, replicated=replicated)

    def load(self, directory: Path) -> None:
        """Restore what a snapshot wrote on any number of ranks."""
        reader = FlatShardReader(directory)
        for piece in self._flat_shards():
            reader.fill(piece)

    def _flat_shards(self) -> Iterator[FlatShard]:
        for place, average in zip(self.places, self.average, strict=True):
            yield FlatShard(f"{WEIGHT}/{place.name}", place.start, average)

    @torch.no_grad()
    def update(self, cycle: int = 0) -> None:
        """Move the average towards the weights that a cycle has trained."""
        decay = self.decay if cycle >= self.start else 0.0
        torch._foreach_lerp_(self.average, self.live, 1 - decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Run with the averaged weights, then put the trained ones back; on every rank."""
        trained = [values.clone() for values in self.live]
        self._write(self.average)
        try:
            yield
        finally:
            self._write(trained)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for live, value in zip(self.live, values, strict=True):
            live.copy_(value)
        self.engine.refresh()


def averaged(ema: Ema | None) -> AbstractContextManager[None]:
    """Run the body with a role's averaged weights, where the recipe averages any."""
    return ema.swapped() if ema else nullcontext()
