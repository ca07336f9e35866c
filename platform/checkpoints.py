"""Checkpoints of a run: complete or absent."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist

from magicdistill.platform.engine import Ema, Engine

COMMITTED = "COMMITTED"


class Checkpoints:
    """Saves and restores all roles; a folder without its commit marker does not count."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def committed(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        return sorted(marker.parent for marker in self.folder.glob(f"cycle-*/{COMMITTED}"))

    def save(self, cycle: int, engines: Mapping[str, Engine], ema: Ema | None) -> None:
        """Write the state after `cycle` cycles; every rank calls it."""
        rank = _rank()
        path = self.folder / f"cycle-{cycle:07d}"
        if rank == 0:
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
        _barrier()
        for role, engine in engines.items():
            engine.save(path / role)
        if ema is not None:
            torch.save(ema.average, path / f"ema-{rank}.pt")
        _barrier()
        if rank == 0:
            (path / COMMITTED).write_text(f"{cycle}\n")
            for old in self.committed()[: -self.keep]:
                (old / COMMITTED).unlink()
                shutil.rmtree(old)
        _barrier()

    def load_latest(self, engines: Mapping[str, Engine], ema: Ema | None) -> int:
        """Restore the newest complete checkpoint; return its cycle, 0 where there is none."""
        paths = self.committed()
        if not paths:
            return 0
        path = paths[-1]
        for role, engine in engines.items():
            engine.load(path / role)
        if ema is not None:
            ema.average = torch.load(path / f"ema-{_rank()}.pt", weights_only=True)
        return int((path / COMMITTED).read_text())


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
