"""A run's metrics on Ray's metrics endpoint, for Prometheus and Grafana."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray.util.metrics import Gauge

from magicdistill.platform.runs import logs
from magicdistill.platform.runs.file_polling import Tail, polling
from magicdistill.platform.runs.row_files import TIME, parse_row
from magicdistill.platform.runs.run_directory import RunDirectory

CYCLE, METRIC, UNSENT = "magicdistill_cycle", "magicdistill_metric", "magicdistill_unsent"
LABELS = {CYCLE: ("run",), METRIC: ("run", "metric"), UNSENT: ("run",)}
"""Labels of what is published, by name; Ray puts `ray_` in front of the names."""
UNSENT_EVERY_S = 30.0
"""Seconds between two counts of what is not sent yet, for which files are read."""


@contextmanager
def published(
    run: RunDirectory, every_s: float = 1.0, num_unsent: Callable[[], int] | None = None
) -> Iterator[None]:
    """Publish, while the body runs, the newest row of the run's metrics.

    Prometheus reads `ray_magicdistill_cycle{run=...}` and `ray_magicdistill_metric{run=...,
    metric="generator/dmd"}` on every node's metrics port; for a driver that Ray knows.
    `num_unsent` counts what the tracking server has not got yet: `ray_magicdistill_unsent`.
    """
    tail = Tail(run.metrics_path)
    cycle = Gauge(CYCLE, "Finished cycles of a run", LABELS[CYCLE])
    metric = Gauge(METRIC, "Newest value of a run's metric", LABELS[METRIC])
    unsent = Gauge(UNSENT, "Rows and events that the tracking server lacks", LABELS[UNSENT])
    name, counted_s = run.path.name, -UNSENT_EVERY_S

    def publish() -> None:
        nonlocal counted_s
        if num_unsent is not None and time.monotonic() - counted_s >= UNSENT_EVERY_S:
            unsent.set(num_unsent(), {"run": name})
            counted_s = time.monotonic()
        rows = [row for line in tail.lines() if (row := parse_row(line)) is not None]
        for values in rows[-1:]:
            values.pop(TIME, None)
            cycle.set(values.pop("step"), {"run": name})
            for key, value in values.items():
                metric.set(value, {"run": name, "metric": key})

    with polling(publish, every_s, "publishing metrics to Ray", logs.say):
        yield
