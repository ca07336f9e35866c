"""A run's metrics on Ray's metrics endpoint, for Prometheus and Grafana."""

from collections.abc import Iterator
from contextlib import contextmanager

from ray.util.metrics import Gauge

from magicdistill.platform.runs import logs
from magicdistill.platform.runs.file_polling import Tail, polling
from magicdistill.platform.runs.row_files import TIME, parse_row
from magicdistill.platform.runs.run_directory import RunDirectory


@contextmanager
def published(run: RunDirectory, every_s: float = 1.0) -> Iterator[None]:
    """Publish, while the body runs, the newest row of the run's metrics.

    Prometheus reads `ray_magicdistill_cycle{run=...}` and `ray_magicdistill_metric{run=...,
    metric="generator/dmd"}` on every node's metrics port; for a driver that Ray knows.
    """
    tail = Tail(run.metrics_path)
    cycle = Gauge("magicdistill_cycle", "Finished cycles of a run", ("run",))
    metric = Gauge("magicdistill_metric", "Newest value of a run's metric", ("run", "metric"))
    name = run.path.name

    def publish() -> None:
        rows = [row for line in tail.lines() if (row := parse_row(line)) is not None]
        for values in rows[-1:]:
            values.pop(TIME, None)
            cycle.set(values.pop("step"), {"run": name})
            for key, value in values.items():
                metric.set(value, {"run": name, "metric": key})

    with polling(publish, every_s, "publishing metrics to Ray", logs.say):
        yield
