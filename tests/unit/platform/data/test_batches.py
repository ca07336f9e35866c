import pytest

from magicdistill.platform.config.sections import OptimizerConfig, ScheduleConfig
from magicdistill.platform.data.batches import deal


def schedule(batch_size: int, num_micro_batches: int = 1) -> ScheduleConfig:
    return ScheduleConfig(
        num_cycles=1,
        batch_size=batch_size,
        num_micro_batches=num_micro_batches,
        optimizers={"generator": OptimizerConfig(lr=1e-3)},
    )


def windows(batch_size: int, sequence_parallel: int, world_size: int) -> list[list[range]]:
    """The positions of each rank in two windows of two micro-batches."""
    ranks = [
        deal(schedule(batch_size, 2), sequence_parallel, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    return [[deal(w, m) for w in range(2) for m in range(2)] for deal in ranks]


def test_a_sequence_group_shares_its_positions():
    alone = windows(8, sequence_parallel=1, world_size=2)
    grouped = windows(8, sequence_parallel=2, world_size=4)
    assert grouped == [alone[0], alone[0], alone[1], alone[1]]


@pytest.mark.parametrize(("world_size", "sequence_parallel"), [(1, 1), (4, 1), (4, 2), (4, 4)])
def test_every_position_is_dealt_to_one_group_once(world_size, sequence_parallel):
    groups = windows(8, sequence_parallel, world_size)[::sequence_parallel]
    assert sorted(p for group in groups for part in group for p in part) == list(range(16))


@pytest.mark.parametrize(
    ("batch_size", "world_size", "sequence_parallel", "message"),
    [
        (4, 3, 2, "3 workers do not divide into groups of cluster.sequence_parallel 2"),
        (3, 4, 2, "batch_size 3 does not divide over 2 groups of 2 workers x 1 micro-batches"),
    ],
)
def test_what_does_not_divide_is_refused(batch_size, world_size, sequence_parallel, message):
    with pytest.raises(ValueError, match=message):
        deal(schedule(batch_size), sequence_parallel, rank=0, world_size=world_size)
