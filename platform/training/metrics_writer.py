"""What rank 0 writes of every cycle: its metrics, where its time went, progress lines."""

import time
from collections.abc import Iterable

from magicdistill.data_pipeline.progress import Pace
from magicdistill.models.profiling import span
from magicdistill.platform.config.sections import ScheduleConfig
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.training.callbacks import Callback
from magicdistill.platform.training.loop import Metrics
from magicdistill.platform.training.stragglers import PREFIX, Stragglers

STARVING = 0.05
"""Share of the time that workers may wait for data before the run says that they starve."""
WIDEST_PACE = len("99.9 s each, 59 min 59 s left")
RELIEF = "jobs/plan.py says how many pairs.num_actors or data.num_readers it takes"


class MetricsWriter(Callback):
    """Writes the metrics of every cycle, and now and then a progress line."""

    first_rank_only = True

    def __init__(self, run: RunDirectory, schedule: ScheduleConfig, stragglers: Stragglers) -> None:
        self.run, self.schedule, self.stragglers = run, schedule, stragglers
        self.pace = Pace()
        self.last_s: float | None = None
        self.spent: dict[str, float] = {}
        self.waited_s = self.counted_s = 0.0

    @span("logging")
    def __call__(self, cycle: int, metrics: Metrics) -> None:
        """Write a finished cycle's metrics with its seconds."""
        is_first, now_s = self.last_s is None, time.perf_counter()
        began_s = self.stragglers.step_timer.began_s if self.last_s is None else self.last_s
        seconds = now_s - began_s
        self.last_s = now_s
        self.pace.add(seconds)
        self.run.append_metrics(
            cycle,
            metrics | {"seconds_per_cycle": seconds} | self._parts(seconds, is_first=is_first),
        )
        if is_first or self.schedule.has_line(cycle):
            self.run.say(self._line(cycle, metrics))
        if cycle == self.schedule.num_cycles:
            self.run.say(self._breakdown())
            if self.waited_s > STARVING * self.counted_s:
                share = self.waited_s / self.counted_s
                self.run.say(
                    f"starving: {share:.0%} of the time went to waiting for data; {RELIEF}"
                )

    def _parts(self, whole_s: float, *, is_first: bool) -> Metrics:
        """Return the seconds of a cycle's parts: what no span has seen is `other`."""
        parts = dict(self.stragglers.own)
        parts["other"] = whole_s - sum(parts.values())
        for name, seconds in parts.items():
            self.spent[name] = self.spent.get(name, 0.0) + seconds
        if not is_first:  # in the first cycle all data has yet to start
            self.waited_s += parts.get("data", 0.0)
            self.counted_s += whole_s
        return {f"seconds/{name}": seconds for name, seconds in parts.items()}

    def _breakdown(self) -> str:
        whole = sum(self.spent.values())
        parts = sorted(self.spent.items(), key=lambda part: -part[1])
        return "time went to  " + "  ".join(f"{name} {s / whole:.1%}" for name, s in parts)

    def _line(self, cycle: int, metrics: Metrics) -> str:
        total = self.schedule.num_cycles
        terms = (
            f"{name} {value:.4g}"
            for name, value in metrics.items()
            if not name.endswith(("/grad_norm", "/lr"))
            and not name.startswith(PREFIX)
            and (name == "health/drift" or "health/" not in name)
        )
        return format_cycle(cycle, total, self.pace.describe(total - cycle), terms)


def format_cycle(cycle: int, total: int, pace: str, terms: Iterable[str]) -> str:
    """Return the progress line of a cycle, whose columns are those of every other cycle's line."""
    widest = len(f"cycle {total}/{total}")
    parts = [f"{f'cycle {cycle}/{total}':<{widest}}", f"{pace:<{WIDEST_PACE}}"]
    return "  ".join([*parts, *(f"{term:<{len(term.split()[0]) + 10}}" for term in terms)]).rstrip()
