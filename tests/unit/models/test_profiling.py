"""Where time goes."""

import time

import pytest

from magicdistill.models.profiling import StepTimer, span


def test_a_span_counts_without_those_inside() -> None:
    step_timer = StepTimer()
    start_s = time.perf_counter()
    with step_timer.running(), span("outer"):
        time.sleep(0.02)
        for _ in range(2):
            with span("inner"):
                time.sleep(0.02)
    whole_s = time.perf_counter() - start_s
    seconds = step_timer.take()
    assert seconds["inner"] >= 0.04
    assert seconds["outer"] >= 0.02
    assert sum(seconds.values()) <= whole_s
    assert step_timer.take() == {}


def test_a_span_ends_with_an_exception() -> None:
    step_timer = StepTimer()
    with step_timer.running(), pytest.raises(ValueError), span("outer"), span("inner"):
        raise ValueError
    with step_timer.running(), span("next"):
        pass
    assert all(seconds >= 0 for seconds in step_timer.take().values())
    assert step_timer.open == []


def test_spans_cost_nothing_where_no_timer_runs() -> None:
    step_timer = StepTimer()

    @span("alone")
    def work() -> int:
        return 3

    assert work() == 3
    with step_timer.running():
        assert work() == 3
    assert list(step_timer.take()) == ["alone"]
