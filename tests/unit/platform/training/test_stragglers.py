"""The slow rank is told by its times, and the numbers are those of all ranks."""

import time

import pytest

from magicdistill.models.profiling import StepTimer, span
from magicdistill.platform.config.recipe import load_recipe
from magicdistill.platform.training.stragglers import Stragglers, spread


def test_the_rank_of_the_greatest_is_told_beside_least_and_median() -> None:
    found = spread([{"forward_s": 1.0, "peak_gib": 3.0}, {"forward_s": 1.5}, {"forward_s": 1.1}])
    assert found == {
        "ranks/forward_s/min": 1.0,
        "ranks/forward_s/median": 1.1,
        "ranks/forward_s/max": 1.5,
        "ranks/forward_s/rank_of_max": 1.0,
        "ranks/peak_gib/min": 0.0,
        "ranks/peak_gib/median": 0.0,
        "ranks/peak_gib/max": 3.0,
        "ranks/peak_gib/rank_of_max": 0.0,
    }


def test_times_are_means_of_a_cycle_since_the_last_line() -> None:
    schedule = load_recipe("portrait-tiny").schedule.model_copy(update={"num_cycles": 60})
    stragglers, metrics = Stragglers(schedule, StepTimer()), dict[str, float]()
    for cycle in range(1, 7):
        with stragglers.step_timer.running(), span("forward"):
            time.sleep(0.02 if cycle <= 3 else 0.06)
        found = dict[str, float]()
        stragglers(cycle, found)
        assert stragglers.own["forward"] >= 0.02
        assert bool(found) == (cycle in (3, 6)), "a line is due every third cycle of sixty"
        metrics = found or metrics
    assert metrics["ranks/forward_s/max"] == pytest.approx(0.06, abs=0.03)
    assert metrics["ranks/forward_s/max"] >= 0.06
    assert 0.01 < metrics["ranks/peak_gib/min"] < 64
