"""Where time goes."""

import time

import pytest

from magicdistill.models.profiling import Stopwatch, span


def test_a_span_counts_without_those_inside() -> None:
    stopwatch = Stopwatch()
    start_s = time.perf_counter()
    with stopwatch.running(), span("outer"):
        time.sleep(0.02)
        for _ in range(2):
            with span("inner"):
                time.sleep(0.02)
    whole_s = time.perf_counter() - start_s
    seconds = stopwatch.take()
    assert seconds["inner"] >= 0.04
    assert seconds["outer"] >= 0.02
    assert sum(seconds.values()) <= whole_s
    assert stopwatch.take() == {}


def test_a_span_ends_with_an_exception() -> None:
    stopwatch = Stopwatch()
    with stopwatch.running(), pytest.raises(ValueError), span("outer"), span("inner"):
        raise ValueError
    with stopwatch.running(), span("next"):
        pass
    assert all(seconds >= 0 for seconds in stopwatch.take().values())
    assert stopwatch.open == []


def test_spans_cost_nothing_where_no_stopwatch_runs() -> None:
    stopwatch = Stopwatch()

    @span("alone")
    def work() -> int:
        return 3

    assert work() == 3
    with stopwatch.running():
        assert work() == 3
    assert list(stopwatch.take()) == ["alone"]
