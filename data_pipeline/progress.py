"""Show the progress of long stages, with their pace: bars on a terminal, lines in a log file."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tqdm import tqdm

from magicdistill.data_pipeline import console

Progress = Callable[[str, int, int], None]
"""Called with the stage's name, the number of items done and their total; first, perhaps, with 0
when the stage begins."""

LINE_EVERY_S = 30.0
"""Seconds between two lines where standard error is no terminal."""
MEMORY = 0.98
"""Weight of a reading of the pace relative to the one after it: about 50 readings count."""
BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {elapsed}{postfix}"
"""A bar with its clock, in tqdm's format; the pace is its postfix."""


class Pace:
    """Seconds per item of a stage: the mean of late readings, weighted to the latest.

    The first reading holds what a start costs. It counts as long as it is the only one.
    """

    def __init__(self) -> None:
        self._first_s: float | None = None
        self._seconds = self._items = 0.0

    def add(self, seconds: float, items: int = 1) -> None:
        """Note how long the last items took together."""
        if self._first_s is None:
            self._first_s = seconds / items
            return
        self._seconds = MEMORY * self._seconds + seconds
        self._items = MEMORY * self._items + items

    @property
    def seconds_per_item(self) -> float | None:
        """The pace; None before the first reading."""
        return self._seconds / self._items if self._items else self._first_s

    def describe(self, num_left: int) -> str:
        """Return the pace and the time that `num_left` items take; empty before a reading."""
        pace_s = self.seconds_per_item
        if pace_s is None:
            return ""
        return f"{format_pace(pace_s)}, {format_duration(pace_s * num_left)} left"


def format_pace(seconds: float) -> str:
    """Return how long an item takes, in three digits."""
    digits = 0 if seconds >= 100 else 1 if seconds >= 10 else 2 if seconds >= 1 else 3
    return f"{seconds:.{digits}f} s each"


def format_duration(seconds: float) -> str:
    """Return a duration in its two largest units, from seconds to days."""
    minutes, rest_s = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest_s} s"
    hours, rest_min = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min {rest_s:02d} s"
    days, rest_h = divmod(hours, 24)
    return f"{days} d {rest_h} h" if days else f"{hours} h {rest_min:02d} min"


@dataclass
class _Stage:
    """A stage that goes on."""

    since_s: float
    last_s: float
    next_line_s: float
    done: int = 0
    pace: Pace = field(default_factory=Pace)
    bar: tqdm | None = None


class Bars:
    """One bar for each stage on a terminal; elsewhere a line every LINE_EVERY_S.

    A stage begins with its first call, which may say that nothing is done yet; otherwise when the
    stage before it ended. At its end a line says how long it took.
    """

    def __init__(self, unit: str = "") -> None:
        self.unit = f" {unit}s" if unit else ""
        """What is counted, for people."""
        self._stages: dict[str, _Stage] = {}
        self._idle_since_s = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Note how much of a stage is done; it ends when all is."""
        now_s = time.monotonic()
        if stage not in self._stages:
            start_s = self._idle_since_s if done else now_s
            self._stages[stage] = _Stage(start_s, start_s, start_s + LINE_EVERY_S)
        at = self._stages[stage]
        if done > at.done:
            at.pace.add(now_s - at.last_s, done - at.done)
            at.done, at.last_s = done, now_s
        if done >= total:
            self._end(stage, now_s, total)
        elif console.is_terminal(sys.stderr):
            self._move(stage, at, total)
        elif now_s >= at.next_line_s:
            pace = at.pace.describe(total - done)
            console.write(f"{stage} {done}/{total}{self.unit}{pace and f'  {pace}'}")
            at.next_line_s = now_s + LINE_EVERY_S

    def _move(self, stage: str, at: _Stage, total: int) -> None:
        if at.bar is None:
            at.bar = console.open_bar(total, BAR, stage)
            at.bar.start_t -= time.monotonic() - at.since_s
        at.bar.n = at.done
        at.bar.set_postfix_str(at.pace.describe(total - at.done))

    def _end(self, stage: str, now_s: float, total: int) -> None:
        at = self._stages.pop(stage)
        if at.bar is not None:
            console.close_bar(at.bar)
        took = format_duration(now_s - at.since_s)
        console.write(f"{stage} {total}/{total}{self.unit}  in {took}")
        self._idle_since_s = now_s
