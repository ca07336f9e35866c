"""What a metric comes to: a number, or absent with the reason."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class AbsentMetric:
    """A metric that could not be measured. Nothing else takes its place."""

    reason: str


Metric = float | AbsentMetric


@dataclass(frozen=True)
class Uncertainty:
    """What stands beside a metric."""

    interval: tuple[float, float] | None = None
    """95 % interval over videos."""
    halves: float | None = None
    """Of a distribution distance: the mean between disjoint halves of the inputs, which of the real
    clips is the floor."""
    subset_std: float | None = None
    """Of a kernel distance: the standard deviation over subsets, as KID is published."""


def average(metrics: Mapping[str, Metric]) -> Metric:
    """Return the plain mean, absent where one of them is or where there is none.

    The papers' last column: the rows of 002's tables are reproduced by it. (The official VBench
    leaderboard weighs and rescales instead.)
    """
    if missing := [name for name, metric in metrics.items() if isinstance(metric, AbsentMetric)]:
        return AbsentMetric(f"the average needs {', '.join(missing)}")
    if not metrics:
        return AbsentMetric("there is nothing to average")
    return sum(metric for metric in metrics.values() if isinstance(metric, float)) / len(metrics)
