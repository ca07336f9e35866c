"""A disk that is full on one rank only."""

from pathlib import Path

import pytest
import torch.distributed as dist
from torch import multiprocessing

from magicdistill.platform.checkpoints.checkpoints import Checkpoints
from magicdistill.platform.engines.engine import TorchEngine
from tests.engines import FullDiskEngine, make_engine


def save_on_a_rank(rank: int, folder: Path) -> None:
    """Save with two ranks of which the second finds the disk full; write what each raises."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    engine = make_engine(FullDiskEngine if rank == 1 else TorchEngine)
    try:
        Checkpoints(folder / "checkpoints", keep=1).save(1, {"net": engine}, None)
    except Exception as error:
        (folder / f"error-{rank}").write_text(f"{type(error).__name__}: {error}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_full_disk_on_one_rank_is_the_one_cause_on_all(tmp_path):
    start = "forkserver"
    multiprocessing.start_processes(save_on_a_rank, (tmp_path,), nprocs=2, start_method=start)
    first, second = ((tmp_path / f"error-{rank}").read_text() for rank in (0, 1))
    assert second.startswith("DiskFullError: [Errno 28] no space left for a checkpoint")
    assert first.startswith("OtherRankError: rank 1 failed with DiskFullError: [Errno 28] no space")
    assert list((tmp_path / "checkpoints").iterdir()) == []
