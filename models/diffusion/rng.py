"""Randomness as a function of (seed, cycle, update, sample), so that a resume replays it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Rng:
    """The random numbers of one update.

    Every value depends on the global sample position and not on the rank, so two workers
    with half a batch each draw what one worker with the whole batch draws.
    """

    seed: int
    cycle: int
    update: int
    positions: Sequence[int]
    device: torch.device | str = "cpu"

    def of_cycle(self) -> "Rng":
        """Return the draws that all turns of the cycle share."""
        return replace(self, update=-1)

    def normal(self, stream: str, shape: Sequence[int]) -> Float[Tensor, "b ..."]:
        """Draw standard normals of `shape` for each sample."""
        return self._stack(
            [
                torch.randn(tuple(shape), generator=self._generator(stream, p))
                for p in self.positions
            ]
        )

    def uniform(self, stream: str) -> Float[Tensor, " b"]:
        """Draw one number in [0, 1) for each sample."""
        generators = (self._generator(stream, position) for position in self.positions)
        return self._stack([torch.rand((), generator=g) for g in generators])

    def shared_index(self, stream: str, count: int) -> int:
        """Draw one index in [0, count) that is the same on every rank."""
        return int(torch.randint(count, (), generator=self._generator(stream, None)))

    def _stack(self, values: list[Tensor]) -> Tensor:
        return torch.stack(values).to(self.device)

    def _generator(self, stream: str, position: int | None) -> torch.Generator:
        name = f"{self.seed}/{self.cycle}/{self.update}/{stream}/{position}"
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
