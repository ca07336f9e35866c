"""The table of scores as text: numbers where there are some, reasons where there are none."""

from magicdistill.models.metrics.results import AbsentMetric, Metric
from magicdistill.models.metrics.suite import METRICS
from magicdistill.platform.scoring import COLLAPSED, format_table

MISSING = AbsentMetric("no folder of metric weights was given")


def row(**numbers: float) -> dict[str, Metric]:
    return dict.fromkeys(METRICS, MISSING) | numbers


def test_the_table_has_the_metrics_that_are_there() -> None:
    lines = format_table(
        {"real": row(fid=0.0, lpips=0.0), "student": row(fid=31.1, lpips=0.25)}
    ).splitlines()
    assert lines[0].split() == ["fid", "lpips"]
    assert [line.split() for line in lines[1:3]] == [
        ["real", "0.0000", "0.0000"],
        ["student", "31.1000", "0.2500"],
    ]
    assert f"absent fvd: {MISSING.reason}" in lines
    assert not any(line.startswith("absent fid") for line in lines)


def test_a_reason_of_some_ways_names_them() -> None:
    lines = format_table(
        {"real": row(fid=0.0), "student": dict.fromkeys(METRICS, COLLAPSED)}
    ).splitlines()
    assert lines[2].split() == ["student", "absent"]
    assert f"absent fid (student): {COLLAPSED.reason}" in lines
    assert f"absent fvd (real): {MISSING.reason}" in lines
