"""The pace of a stage is right from its first item on, and so is the time that is left."""

import itertools
import time

import pytest

from magicdistill.data_pipeline.progress import Bars, Pace, format_duration


def test_one_reading_is_the_pace() -> None:
    pace = Pace()
    assert pace.describe(5) == ""
    pace.add(3.0)
    assert pace.describe(5) == "3.00 s each, 15 s left"


def test_what_a_start_costs_is_forgotten_once_there_is_more() -> None:
    pace = Pace()
    for seconds in (600.0, 2.0, 2.0, 2.0):
        pace.add(seconds)
    assert pace.describe(100) == "2.00 s each, 3 min 20 s left"


def test_a_pace_is_a_mean_over_items_not_over_readings() -> None:
    pace = Pace()
    for seconds, items in ((1.0, 1), (9.0, 9), (1.0, 1)):
        pace.add(seconds, items)
    assert pace.seconds_per_item == pytest.approx(1.0)


def test_a_pace_follows_a_training_whose_cycles_become_longer() -> None:
    pace = Pace()
    for seconds in itertools.chain([1.0] * 1000, [5.0] * 200):
        pace.add(seconds)
    assert pace.seconds_per_item == pytest.approx(5.0, rel=0.02)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599.0, "59 min 59 s"),
        (3600.0, "1 h 00 min"),
        (86399.0, "23 h 59 min"),
        (200_000.0, "2 d 7 h"),
    ],
)
def test_durations_are_told_in_two_units(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


def test_a_log_has_lines_now_and_then_and_one_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    bars = Bars("clip")
    bars("score", 0, 4)
    for done, now_s in ((1, 20.0), (2, 31.0), (3, 42.0), (4, 53.0)):  # noqa: B007
        bars("score", done, 4)
    lines = [line.partition("] ")[2] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["score 2/4 clips  11.0 s each, 22 s left", "score 4/4 clips  in 53 s"]


def test_a_stage_that_did_not_say_when_it_began_did_so_when_the_one_before_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    bars = Bars()
    for now_s, stage in ((5.0, "score"), (12.0, "encode")):  # noqa: B007
        bars(stage, 3, 3)
    lines = [line.partition("] ")[2] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["score 3/3  in 5 s", "encode 3/3  in 7 s"]
