"""State that is written in pieces and read in other ones."""

from pathlib import Path

import pytest
import torch

from magicdistill.platform.checkpoints.flat_shards import (
    FlatShard,
    FlatShardReader,
    write_flat_shards,
)

VALUES = torch.arange(24.0)
SHAPE = torch.Size([4, 6])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What three ranks wrote, of which each held a part."""
    for rank, (start, stop) in enumerate([(0, 7), (7, 16), (16, 24)]):
        piece = FlatShard("weight/a", start, VALUES[start:stop])
        write_flat_shards(tmp_path, [piece], {"a": SHAPE}, {"schedule_step": 3}, replicated=False)
        (tmp_path / "rank-00000.safetensors").rename(tmp_path / f"rank-0000{9 - rank}.safetensors")
    return tmp_path


@pytest.mark.parametrize("start", range(0, 24, 5))
def test_any_stretch_is_put_together(folder, start):
    for stop in range(start, 25):
        piece = FlatShard("weight/a", start, torch.full((stop - start,), -1.0))
        FlatShardReader(folder).fill(piece)
        assert torch.equal(piece.values, VALUES[start:stop])


def test_a_parameter_is_read_in_its_shape(folder):
    reader = FlatShardReader(folder)
    assert reader.names() == ["a"]
    assert torch.equal(reader.whole("weight", "a"), VALUES.view(SHAPE))
    assert reader.facts["schedule_step"] == 3


@pytest.mark.parametrize(("name", "size"), [("weight/b", 1), ("exp_avg/a", 1), ("weight/a", 25)])
def test_what_was_never_written_is_refused(folder, name, size):
    with pytest.raises(ValueError, match=f"no value .* of {name}"):
        FlatShardReader(folder).fill(FlatShard(name, 0, torch.zeros(size)))


def test_a_stretch_that_no_rank_wrote_is_refused(folder):
    (folder / "rank-00008.safetensors").unlink()
    with pytest.raises(ValueError, match="no value 7 of weight/a"):
        FlatShardReader(folder).whole("weight", "a")
