"""Engines of a module of four numbers."""

import threading
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from magicdistill.platform.checkpoints.checksummed_files import Checksums
from magicdistill.platform.checkpoints.flat_shards import Snapshot
from magicdistill.platform.config.sections import OptimizerConfig, TorchEngineConfig
from magicdistill.platform.engines.engine import TorchEngine


class FullDisk(Snapshot):
    """Finds the disk full in the middle of its files."""

    def write(self, folder: Path) -> Checksums:
        """Write what fits, then meet the kernel's own error."""
        written = super().write(folder)
        Path("/dev/full").write_bytes(b"more")
        return written


class FullDiskEngine(TorchEngine):
    """Finds the disk full when it is written."""

    def snapshot(self) -> Snapshot:
        """Copy the state."""
        return FullDisk(**vars(super().snapshot()))


@dataclass(frozen=True)
class SlowDisk(Snapshot):
    """Waits in the middle of its files until a test lets it go on."""

    may_end: threading.Event

    def write(self, folder: Path) -> Checksums:
        """Write the tensors' file, wait, and write again with all."""
        super().write(folder)
        self.may_end.wait()
        return super().write(folder)


class SlowDiskEngine(TorchEngine):
    """Is written slowly: `may_end` lets it end."""

    may_end = threading.Event()

    def snapshot(self) -> Snapshot:
        """Copy the state."""
        return SlowDisk(**vars(super().snapshot()), may_end=self.may_end)


def make_engine(kind: type[TorchEngine] = TorchEngine) -> TorchEngine:
    config = TorchEngineConfig(kind="torch")
    return kind(config, nn.Linear(4, 4), OptimizerConfig(lr=0.1), num_micro_batches=1)
