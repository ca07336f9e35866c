import pytest

from magicdistill.data_pipeline.sampler import Sampler


def test_every_epoch_reads_every_row_once_in_another_order():
    sampler = Sampler(50, seed=3)
    first = [sampler.row(position) for position in range(50)]
    second = [sampler.row(position) for position in range(50, 100)]
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second


def test_a_row_depends_on_seed_and_position_only():
    straight = [Sampler(50, seed=3).row(position) for position in (120, 7, 60)]
    sampler = Sampler(50, seed=3)
    for position in range(130):
        sampler.row(position)
    assert [sampler.row(position) for position in (120, 7, 60)] == straight
    assert [Sampler(50, seed=4).row(p) for p in range(9)] != [sampler.row(p) for p in range(9)]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_ranks_together_read_the_same_rows_at_any_world_size(world_size: int):
    sampler = Sampler(50, seed=3)
    read = [
        row
        for step in range(5)
        for rank in range(world_size)
        for row in sampler.batch(step, rank, world_size, 8 // world_size)
    ]
    assert read == [sampler.row(position) for position in range(40)]


def test_an_empty_cache_is_refused():
    with pytest.raises(ValueError, match="empty"):
        Sampler(0, seed=0)
