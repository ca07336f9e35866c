from collections import Counter

import pytest

from magicdistill.data_pipeline.config import Mixture
from magicdistill.data_pipeline.sampler import CYCLE, MixtureSampler, Sampler


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


KINDS = ["portrait"] * 40 + ["general"] * 15 + ["anime"] * 5
WEIGHTS: dict[Mixture, float] = {"portrait": 6.0, "general": 3.0, "anime": 1.0}


def drawn(sampler: MixtureSampler, count: int, first: int = 0) -> list[int]:
    return [sampler.row(position) for position in range(first, first + count)]


def test_a_mixture_meets_its_shares_whatever_the_kinds_sizes():
    rows = drawn(MixtureSampler(KINDS, WEIGHTS, seed=3), 3 * CYCLE)
    assert Counter(KINDS[row] for row in rows) == {"portrait": 1800, "general": 900, "anime": 300}
    # within a kind all rows come equally often, to one epoch
    assert set(Counter(row for row in rows if KINDS[row] == "anime").values()) == {60}
    assert set(Counter(row for row in rows if KINDS[row] == "portrait").values()) == {45}
    assert len({KINDS[row] for row in rows[:50]}) == 3


def test_a_row_of_a_mixture_depends_on_seed_and_position_only():
    straight = drawn(MixtureSampler(KINDS, WEIGHTS, seed=3), 2500)
    resumed = MixtureSampler(KINDS, WEIGHTS, seed=3)
    assert drawn(resumed, 300, first=2100) == straight[2100:2400]
    assert drawn(resumed, 300, first=900) == straight[900:1200]
    assert drawn(MixtureSampler(KINDS, WEIGHTS, seed=4), 50) != straight[:50]


def test_a_kind_without_a_weight_is_left_out_and_a_weight_without_rows_is_refused():
    rows = drawn(MixtureSampler(KINDS, {"general": 1.0, "anime": 2.0}, seed=0), CYCLE)
    assert Counter(KINDS[row] for row in rows) == {"general": 333, "anime": 667}
    with pytest.raises(ValueError, match=r"mixture_weights\.anime: the cache has no such rows"):
        MixtureSampler(KINDS[:50], WEIGHTS, seed=0)
    with pytest.raises(ValueError, match=r"mixture_weights\.anime: at least 1/1000"):
        MixtureSampler(KINDS, {"portrait": 5000.0, "anime": 1.0}, seed=0)
