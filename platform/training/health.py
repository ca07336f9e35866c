"""Judges whether a training is healthy, by the limits of the recipe and every cycle's metrics."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from magicdistill.models.metrics.columns.registry import arrow
from magicdistill.platform.config.sections import HealthConfig, Thresholds
from magicdistill.platform.runs.logs import ExplainedError

VALIDATION = "validation/"
"""Prefix of the evaluation's metrics where they are measured in training."""


class UnhealthyError(ExplainedError):
    """A training that was stopped for its health; going on would only repeat it."""


@dataclass(frozen=True)
class Violation:
    """A metric that has left its limits for good."""

    cycle: int
    metric: str
    value: float
    limits: Thresholds
    times: int
    """Number of values in a row outside the limits, which is the recipe's patience."""

    def __str__(self) -> str:
        repeated = f", for {self.times} values in a row" if self.times > 1 else ""
        return (
            f"unhealthy at cycle {self.cycle}: {self.metric} is {self.value:.4g}, "
            f"{self.limits}{repeated}"
        )


class HealthMonitor:
    """Judges cycles in their order; the same metrics give the same judgement on every rank.

    A limit holds for each metric whose last part is its name: `grad_norm` for
    `generator/grad_norm` and `critic/lora/grad_norm`. The evaluation's metrics have none.
    """

    def __init__(self, config: HealthConfig) -> None:
        self.config = config
        self._limits: dict[str, Thresholds] = {
            name: limits for name, limits in config if isinstance(limits, Thresholds)
        }
        self._outside: dict[str, int] = {}
        self._score: float | None = None
        self._best: tuple[float, int] | None = None

    def observe(self, cycle: int, metrics: Mapping[str, float]) -> Violation | None:
        """Take in a cycle's metrics; return the first that has just left its limits for good."""
        ill = None
        for metric, value in metrics.items():
            name = metric.rpartition("/")[2]
            if name == self.config.best_by:
                self._score = value
            has_limits = name in self._limits and not metric.startswith(VALIDATION)
            if not has_limits or cycle <= self.config.grace_cycles:
                continue
            limits = self._limits[name]
            times = 0 if value in limits else self._outside.get(metric, 0) + 1
            self._outside[metric] = times
            if times == self.config.patience and ill is None:
                ill = Violation(cycle, metric, value, limits, times)
        return None if self.config.action == "off" else ill

    def keeps(self, cycle: int) -> bool:
        """Tell whether the checkpoint of a cycle is the best so far by the last score seen."""
        if self._score is None:
            return False
        best_by = self.config.best_by
        if self._best is not None and not cost(best_by, self._score) < cost(best_by, self._best[0]):
            return False
        self._best = (self._score, cycle)
        return True

    @property
    def best(self) -> str:
        """The best checkpoint in words."""
        if self._best is None:
            return f"no checkpoint has a {self.config.best_by} to be judged by"
        score, cycle = self._best
        return f"the best checkpoint is that of cycle {cycle} ({self.config.best_by} {score:.4g})"


def cost(metric: str, value: float) -> float:
    """Return what is least where a metric is best; infinite for a value that is no number."""
    costs = {"↑": -value, "→ 1": abs(value - 1)}
    found = costs.get(arrow(metric, default="↓"), value)
    return math.inf if math.isnan(found) else found
