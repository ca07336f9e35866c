"""State that is written in pieces and read in other ones."""

import json
from pathlib import Path

import pytest
import torch

from magicdistill.platform.checkpoints.flat_shards import (
    FlatShard,
    FlatShardReader,
    shard_name,
    take_snapshot,
)

VALUES = torch.arange(24.0)
SHAPE = torch.Size([4, 6])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What three ranks wrote, of which each held a part."""
    for rank, (start, stop) in enumerate([(0, 7), (7, 16), (16, 24)]):
        piece = FlatShard("weight/a", start, VALUES[start:stop])
        facts = {"schedule_step": 3}
        take_snapshot([piece], {"a": SHAPE}, facts, replicated=False).write(tmp_path)
        (tmp_path / shard_name(0)).rename(tmp_path / shard_name(2 - rank))
    set_num_ranks(tmp_path, 3)
    return tmp_path


def set_num_ranks(folder: Path, num_ranks: int) -> None:
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"num_ranks": num_ranks}))


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
    set_num_ranks(folder, 2)
    with pytest.raises(ValueError, match="no value 0 of weight/a"):
        FlatShardReader(folder).whole("weight", "a")
