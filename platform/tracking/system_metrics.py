"""The load of this machine, by MLflow's own monitors and under their names."""

from collections.abc import Iterator
from typing import Any

from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

LOOKS = 10
"""Number of readings that are averaged into each logged point."""


class SystemMonitor:
    """CPU, memory and disk, and the GPUs where there are some and nvidia-ml-py is installed."""

    def __init__(self) -> None:
        self._monitors = list(_monitors())
        self._num_looks = 0
        self._look()  # the first value of psutil's cpu_percent() means nothing
        self._clear()

    def look(self) -> dict[str, float]:
        """Measure; return the means of the last ten calls with every tenth, else nothing."""
        self._look()
        self._num_looks += 1
        if self._num_looks % LOOKS:
            return {}
        found: list[Any] = [monitor.aggregate_metrics() for monitor in self._monitors]
        self._clear()
        return {f"system/{name}": value for means in found for name, value in means.items()}

    def _look(self) -> None:
        for monitor in self._monitors:
            monitor.collect_metrics()

    def _clear(self) -> None:
        for monitor in self._monitors:
            monitor.clear_metrics()


def _monitors() -> Iterator[BaseMetricsMonitor]:
    yield from (CPUMonitor(), DiskMonitor())
    try:
        yield GPUMonitor()
    except (ImportError, RuntimeError):  # without the package, without GPUs
        return
