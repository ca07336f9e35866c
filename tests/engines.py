"""Engines of a module of four numbers."""

from pathlib import Path

from torch import nn

from magicdistill.platform.config.sections import OptimizerConfig, TorchEngineConfig
from magicdistill.platform.engines.engine import TorchEngine


class FullDiskEngine(TorchEngine):
    """Finds the disk full in the middle of its files."""

    def save(self, directory: Path) -> None:
        """Write what fits, then meet the kernel's own error."""
        super().save(directory)
        Path("/dev/full").write_bytes(b"more")


def make_engine(kind: type[TorchEngine] = TorchEngine) -> TorchEngine:
    config = TorchEngineConfig(kind="torch")
    return kind(config, nn.Linear(4, 4), OptimizerConfig(lr=0.1), num_micro_batches=1)
