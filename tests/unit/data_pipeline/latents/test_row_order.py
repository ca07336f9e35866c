from collections import Counter

import pyarrow as pa
import pytest

from magicdistill.data_pipeline.latents.row_order import (
    CYCLE,
    BucketOrder,
    MixtureOrder,
    RowOrder,
    open_row_order,
)
from magicdistill.data_pipeline.sources.base import Mixture


def test_every_epoch_reads_every_row_once_in_another_order():
    order = RowOrder(50, seed=3)
    first = [order.row(position) for position in range(50)]
    second = [order.row(position) for position in range(50, 100)]
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second


def test_a_row_depends_on_seed_and_position_only():
    straight = [RowOrder(50, seed=3).row(position) for position in (120, 7, 60)]
    order = RowOrder(50, seed=3)
    for position in range(130):
        order.row(position)
    assert [order.row(position) for position in (120, 7, 60)] == straight
    assert [RowOrder(50, seed=4).row(p) for p in range(9)] != [order.row(p) for p in range(9)]


def test_an_empty_cache_is_refused():
    with pytest.raises(ValueError, match="empty"):
        RowOrder(0, seed=0)


KINDS = ["portrait"] * 40 + ["general"] * 15 + ["anime"] * 5
WEIGHTS: dict[Mixture, float] = {"portrait": 6.0, "general": 3.0, "anime": 1.0}


def index(kinds: list[str], buckets: list[str] | None = None) -> pa.Table:
    return pa.table({"mixture": kinds, "bucket": buckets or ["17x64x64@24"] * len(kinds)})


AnyOrder = RowOrder | MixtureOrder | BucketOrder


def drawn(order: AnyOrder, count: int, first: int = 0) -> list[int]:
    return [order.row(position) for position in range(first, first + count)]


def test_a_mixture_meets_its_shares_whatever_the_kinds_sizes():
    rows = drawn(MixtureOrder(KINDS, WEIGHTS, seed=3), 3 * CYCLE)
    assert Counter(KINDS[row] for row in rows) == {"portrait": 1800, "general": 900, "anime": 300}
    # within a kind all rows come equally often, to one epoch
    assert set(Counter(row for row in rows if KINDS[row] == "anime").values()) == {60}
    assert set(Counter(row for row in rows if KINDS[row] == "portrait").values()) == {45}
    assert len({KINDS[row] for row in rows[:50]}) == 3


def test_a_row_of_a_mixture_depends_on_seed_and_position_only():
    straight = drawn(MixtureOrder(KINDS, WEIGHTS, seed=3), 2500)
    resumed = MixtureOrder(KINDS, WEIGHTS, seed=3)
    assert drawn(resumed, 300, first=2100) == straight[2100:2400]
    assert drawn(resumed, 300, first=900) == straight[900:1200]
    assert drawn(MixtureOrder(KINDS, WEIGHTS, seed=4), 50) != straight[:50]


def test_a_kind_without_a_weight_is_left_out_and_a_weight_without_rows_is_refused():
    rows = drawn(MixtureOrder(KINDS, {"general": 1.0, "anime": 2.0}, seed=0), CYCLE)
    assert Counter(KINDS[row] for row in rows) == {"general": 333, "anime": 667}
    with pytest.raises(ValueError, match=r"mixture_weights\.anime: the cache has no such rows"):
        open_row_order(index(KINDS[:50]), WEIGHTS, 4, seed=0)
    with pytest.raises(ValueError, match=r"mixture_weights\.anime: at least 1/1000"):
        open_row_order(index(KINDS), {"portrait": 5000.0, "anime": 1.0}, 4, seed=0)


def test_with_one_bucket_the_order_is_what_it_was_before_there_were_more():
    rows = drawn(open_row_order(index(KINDS), {}, 4, seed=3), 8)
    assert rows == drawn(RowOrder(60, seed=3), 8) == [51, 21, 10, 50, 3, 20, 53, 29]
    rows = drawn(open_row_order(index(KINDS), WEIGHTS, 4, seed=3), 8)
    assert rows == drawn(MixtureOrder(KINDS, WEIGHTS, seed=3), 8)
    assert rows == [46, 5, 49, 44, 52, 25, 10, 53]


BUCKETS = [*["tall"] * 30, *["wide"] * 10, *["tall"] * 3, *["wide"] * 12, *["wide"] * 5]
"""Of `KINDS`: 30 portraits and 3 general clips of 33 are tall; no anime is."""
BATCH = 8


def two_buckets(weights: dict[Mixture, float], seed: int = 3) -> AnyOrder:
    return open_row_order(index(KINDS, BUCKETS), weights, BATCH, seed)


@pytest.mark.parametrize("weights", [{}, WEIGHTS])
def test_all_samples_of_a_batch_have_one_bucket(weights: dict[Mixture, float]):
    rows = drawn(two_buckets(weights), 300 * BATCH)
    shapes = [{BUCKETS[row] for row in rows[i : i + BATCH]} for i in range(0, len(rows), BATCH)]
    assert all(len(found) == 1 for found in shapes)
    assert {"tall"} in shapes[:20] and {"wide"} in shapes[:20]


def test_buckets_have_batches_in_the_measure_of_their_rows_and_rows_come_once_an_epoch():
    rows = drawn(two_buckets({}), CYCLE * BATCH)
    shares = Counter(BUCKETS[row] for row in rows)
    assert shares == {"tall": 550 * BATCH, "wide": 450 * BATCH}
    for name, size in (("tall", 33), ("wide", 27)):
        own = [row for row in rows if BUCKETS[row] == name]
        epochs = [own[i : i + size] for i in range(0, len(own) - size + 1, size)]
        assert all(len(set(epoch)) == size for epoch in epochs)
        assert epochs[0] != epochs[1]


def test_kinds_meet_their_shares_over_all_buckets_and_rows_of_a_kind_come_alike():
    rows = drawn(two_buckets(WEIGHTS), CYCLE * BATCH)
    shares = Counter(KINDS[row] for row in rows)
    wanted = {"portrait": 0.6, "general": 0.3, "anime": 0.1}
    assert {name: shares[name] / len(rows) for name in shares} == pytest.approx(wanted, abs=5e-3)
    times = Counter(row for row in rows if KINDS[row] == "general")
    assert max(times.values()) == pytest.approx(min(times.values()), rel=0.1)


def test_a_row_of_several_buckets_depends_on_seed_and_position_only():
    straight = drawn(two_buckets(WEIGHTS), 1010 * BATCH)
    resumed = two_buckets(WEIGHTS)
    assert drawn(resumed, 50, first=1003 * BATCH + 3) == straight[1003 * BATCH + 3 :][:50]
    assert drawn(resumed, 50, first=99) == straight[99:149]
    assert drawn(two_buckets(WEIGHTS, seed=4), 400) != straight[:400]


def test_a_bucket_with_hardly_any_rows_is_drawn_and_one_without_weight_is_not():
    kinds, buckets = ["general"] * 5000 + ["anime"], ["wide"] * 4999 + ["tall", "square"]
    order = open_row_order(index(kinds, buckets), {"general": 1.0}, 1, seed=0)
    assert Counter(buckets[row] for row in drawn(order, 1001)) == {"wide": 1000, "tall": 1}
