"""Which rank is slow, or short of memory: times and peaks of all ranks, gathered now and then."""

import pickle
import resource
from collections.abc import Mapping, Sequence
from statistics import median

import torch
from torch._C import _distributed_c10d

from magicdistill.models.profiling import StepTimer
from magicdistill.platform.cluster import ranks
from magicdistill.platform.config.sections import ScheduleConfig
from magicdistill.platform.training.callbacks import Callback
from magicdistill.platform.training.loop import Metrics

PREFIX = "ranks/"
"""Begins the names of these metrics."""
COLLECTIVES = "in_collectives"
"""Seconds in which collectives of a rank were under way. The rank that the others wait for has the
least: it comes last to each, and that one is then over at once."""


class Stragglers(Callback):
    """Adds least, median and greatest time and memory of all ranks, and whose the greatest is.

    `own` has this rank's seconds of the last cycle by part.
    """

    def __init__(self, schedule: ScheduleConfig, step_timer: StepTimer) -> None:
        self.schedule, self.step_timer = schedule, step_timer
        self.own: dict[str, float] = {}
        self._sums: dict[str, float] = {}
        self._num_cycles = 0
        self._last_record = -1

    def __call__(self, cycle: int, metrics: Metrics) -> None:
        """Note a cycle's times; gather those since the last line when one is due."""
        self.own = self.step_timer.take()
        for name, seconds in self.own.items():
            self._sums[name] = self._sums.get(name, 0.0) + seconds
        self._num_cycles += 1
        if self.schedule.has_line(cycle):
            metrics.update(spread(ranks.of_all(self._take())))

    def _take(self) -> dict[str, float]:
        """Return this rank's mean seconds of a cycle by part, and its peak memory in bytes."""
        found = {name.replace(" ", "_"): s / self._num_cycles for name, s in self._sums.items()}
        if (seconds := self._in_collectives()) is not None:
            found[COLLECTIVES] = seconds / self._num_cycles
        self._sums, self._num_cycles = {}, 0
        return {f"{name}_s": value for name, value in found.items()} | {"peak_gib": peak_gib()}

    def _in_collectives(self) -> float | None:
        """Return the seconds of collectives since the last call, by torch's flight recorder.

        None where it has no times: it has those of NCCL alone, and no more than it remembers.
        """
        recorder = getattr(_distributed_c10d, "_dump_nccl_trace", None)
        if recorder is None:
            return None
        entries = pickle.loads(recorder(True, False, False)).get("entries", [])
        new = [entry for entry in entries if entry["record_id"] > self._last_record]
        self._last_record = max((e["record_id"] for e in new), default=self._last_record)
        times = [entry["duration_ms"] for entry in new if "duration_ms" in entry]
        return sum(times) / 1000 if times else None


def spread(found: Sequence[Mapping[str, float]]) -> Metrics:
    """Return least, median and greatest of each rank's numbers, and the rank of the greatest."""
    metrics: Metrics = {}
    for name in found[0]:
        values = [own.get(name, 0.0) for own in found]
        metrics[f"{PREFIX}{name}/min"] = min(values)
        metrics[f"{PREFIX}{name}/median"] = median(values)
        metrics[f"{PREFIX}{name}/max"] = max(values)
        metrics[f"{PREFIX}{name}/rank_of_max"] = float(values.index(max(values)))
    return metrics


def peak_gib() -> float:
    """Return the most memory that this rank had: of its GPU, on processors of its process."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
