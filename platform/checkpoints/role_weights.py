"""The trained weights of a role, read from a checkpoint tensor by tensor."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from magicdistill.platform.checkpoints.flat_shards import WEIGHT, FlatShardReader

Weights = Mapping[str, Callable[[], Tensor]]
"""Whole tensors by name, each made when it is called for: the files are mapped, not read."""


def role_weights(role: Path) -> Weights:
    """Return the trained weights of a role from its folder in a checkpoint, by module name.

    They are the optimiser's: float32, also where the network's own are rounded. The averaged
    weights are read alike, from the folder `checkpoints.EMA`. Raises FileNotFoundError where
    nothing was saved.
    """
    reader = FlatShardReader(role)
    return {name: partial(reader.whole, WEIGHT, name) for name in reader.names()}
