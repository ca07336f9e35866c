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

from magicdistill.platform.checkpoints.checksummed_files import (
    Checksums,
    write_checksummed,
    write_tensors,
)
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


@dataclass(frozen=True)
class Snapshot:
    """What one rank writes of a training state, in host memory: the training may go on."""

    values: Mapping[str, Tensor]
    """Slices by the name and the start of each: `exp_avg/proj_out.weight@0`."""
    state: Mapping[str, Any] | None
    """What the first rank writes to `state.json`; None on the others."""

    def write(self, folder: Path) -> Checksums:
        """Write this rank's files; return their checksums by name."""
        folder.mkdir(parents=True, exist_ok=True)
        name = shard_name(ranks.rank())
        written = {name: write_tensors(folder / name, self.values)}
        if self.state is not None:
            text = json.dumps(self.state).encode()
            written["state.json"] = write_checksummed(folder / "state.json", [text])
        return written


def take_snapshot(
    pieces: Iterable[FlatShard],
    shapes: Mapping[str, torch.Size],
    facts: Mapping[str, Any],
    *,
    replicated: bool,
) -> Snapshot:
    """Copy this rank's pieces to host memory; every rank calls it.

    Where all ranks hold the same (`replicated`), each copies its share. `shapes` are those of the
    whole parameters, by name, and `facts` stand beside them in `state.json`.
    """
    mine = [piece for piece in pieces if piece.values.numel()]
    if replicated:
        mine = mine[ranks.rank() :: ranks.world_size()]
    state = {
        "num_ranks": ranks.world_size(),
        "shapes": {name: list(shape) for name, shape in shapes.items()},
        **facts,
    }
    return Snapshot(
        {f"{piece.name}@{piece.start}": piece.values.to("cpu", copy=True) for piece in mine},
        state if ranks.rank() == 0 else None,
    )


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
