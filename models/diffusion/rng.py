"""Randomness as a function of (seed, cycle, update, sample), so that a resume replays it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Rng:
    """The random numbers of one update of a role.

    Every value depends on the global sample position and not on the rank, so two workers
    with half a batch each draw what one worker with the whole batch draws.
    """

    seed: int
    cycle: int
    update: int
    """Number of the update inside the cycle; -1 is what all its updates share."""
    positions: Sequence[int]
    """Global positions of this rank's samples in the stream of training samples."""
    device: torch.device | str = "cpu"

    def of_cycle(self) -> "Rng":
        """Return the random numbers that all updates of the cycle share."""
        return replace(self, update=-1)

    def normal(self, stream: str, shape: Sequence[int]) -> Float[Tensor, "b ..."]:
        """Draw standard normals (b, *shape); a stream is a name, with numbers of its own."""
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

    def grid_index(self, num_steps: int) -> int:
        """Draw the step of a sampler that an update trains, which is the same on every rank."""
        return self.shared_index("grid", num_steps)

    def _stack(self, values: list[Tensor]) -> Tensor:
        return torch.stack(values).to(self.device, non_blocking=True)

    def _generator(self, stream: str, position: int | None) -> torch.Generator:
        name = f"{self.seed}/{self.cycle}/{self.update}/{stream}/{position}"
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
