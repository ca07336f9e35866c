"""Training state in flat shards, which any number of ranks, under any sharding, can read back."""

import json
from bisect import insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from magicdistill.models.tensor_files import save_file
from magicdistill.platform.cluster import ranks

WEIGHT = "weight"
"""The kind of value that weights are; an optimiser's are `exp_avg`, `exp_avg_sq` and `step`."""


@dataclass(frozen=True)
class FlatShard:
    """A slice of a flattened tensor."""

    name: str
    """Kind of value and name of the parameter: `exp_avg/proj_out.weight`."""
    start: int
    """First number of the slice, counted in the flattened tensor."""
    values: Tensor
    """The slice (one axis), a view of where the rank keeps it: filling it restores the state."""


def write_flat_shards(
    folder: Path,
    pieces: Iterable[FlatShard],
    shapes: Mapping[str, torch.Size],
    facts: Mapping[str, Any],
    *,
    replicated: bool,
) -> None:
    """Write this rank's pieces to a file of its own; every rank calls it.

    Where all ranks hold the same (`replicated`), each writes its share. `shapes` are those of the
    whole parameters, by name; rank 0 writes them to `state.json`, with `facts` beside them.
    """
    mine = [piece for piece in pieces if piece.values.numel()]
    if replicated:
        mine = mine[ranks.rank() :: ranks.world_size()]
    folder.mkdir(parents=True, exist_ok=True)
    # A flat optimiser has one step count for many parameters, and safetensors refuses tensors that
    # share memory: single numbers are copied, and nothing large is.
    values = {
        f"{piece.name}@{piece.start}": piece.values.clone()
        if piece.values.numel() == 1
        else piece.values
        for piece in mine
    }
    save_file(values, folder / shard_name(ranks.rank()))
    if ranks.rank() == 0:
        state = {
            "num_ranks": ranks.world_size(),
            "shapes": {name: list(shape) for name, shape in shapes.items()},
            **facts,
        }
        (folder / "state.json").write_text(json.dumps(state))


def shard_name(rank: int | str) -> str:
    """Return the name of a rank's file."""
    return f"rank-{rank:0>5}.safetensors"


class FlatShardReader:
    """Reads what all ranks have written to a folder; the files are mapped, not read whole.

    Other files that people put there are left alone.
    Raises FileNotFoundError where nothing was written there.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "state.json").is_file():
            raise FileNotFoundError(f"no training state in {folder}")
        self.folder = folder
        self.facts = json.loads((folder / "state.json").read_text())
        self._stretches: dict[str, list[tuple[int, int, int]]] = {}
        num_ranks = self.facts.get("num_ranks", 0)  # version 0.1 did not write it
        names = [shard_name(rank) for rank in range(num_ranks)]
        paths = [folder / name for name in names] or sorted(folder.glob(shard_name("[0-9]" * 5)))
        self._files = [safe_open(path, framework="pt") for path in paths]
        for number, file in enumerate(self._files):
            for key in file.keys():  # noqa: SIM118 (a file is no mapping)
                name, _, start = key.rpartition("@")
                size = file.get_slice(key).get_shape()[0]
                insort(self._stretches.setdefault(name, []), (int(start), size, number))

    def names(self, kind: str = WEIGHT) -> list[str]:
        """Return the names of the parameters that have a value of this kind."""
        prefix = f"{kind}/"
        return [n.removeprefix(prefix) for n in self._stretches if n.startswith(prefix)]

    def __contains__(self, name: str) -> bool:
        return name in self._stretches

    def fill(self, piece: FlatShard) -> None:
        """Copy the stored values into a piece; raises ValueError where some are missing."""
        position, end = piece.start, piece.start + piece.values.numel()
        for start, size, number in self._stretches.get(piece.name, ()):
            stop = min(end, start + size)
            if start <= position < stop:
                stored = self._files[number].get_slice(f"{piece.name}@{start}")
                target = piece.values[position - piece.start : stop - piece.start]
                target.copy_(stored[position - start : stop - start])
                position = stop
        if position < end:
            raise ValueError(
                f"{self.folder} has no value {position} of {piece.name}: it was saved by another "
                "model or method"
            )

    def whole(self, kind: str, name: str) -> Tensor:
        """Return a parameter's values of one kind in its shape, in the stored dtype."""
        shape = torch.Size(self.facts["shapes"][name])
        start, _, number = self._stretches[f"{kind}/{name}"][0]
        dtype = self._files[number].get_slice(f"{kind}/{name}@{start}")[:1].dtype
        piece = FlatShard(f"{kind}/{name}", 0, torch.empty(shape.numel(), dtype=dtype))
        self.fill(piece)
        return piece.values.view(shape)
