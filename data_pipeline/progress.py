"""Show the progress of long stages: bars on a terminal, lines in a log file."""

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

Progress = Callable[[str, int, int], None]
"""Called with the stage's name, the number of items done and their total."""

LINE_EVERY_S = 30.0
"""Seconds between two lines where standard error is no terminal."""


class Bars:
    """One bar for each stage on a terminal; elsewhere a line every LINE_EVERY_S."""

    def __init__(self, unit: str = "clip") -> None:
        self.unit = unit
        self._bars: dict[str, tqdm] = {}
        self._next_line_s = time.monotonic() + LINE_EVERY_S

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Move a stage's bar; it closes when the stage is complete."""
        if not sys.stderr.isatty():
            self._line(stage, done, total)
            return
        if stage not in self._bars:
            self._bars[stage] = tqdm(total=total, desc=stage, unit=self.unit)
        bar = self._bars[stage]
        bar.update(done - bar.n)
        if done >= total:
            self._bars.pop(stage).close()

    def _line(self, stage: str, done: int, total: int) -> None:
        if time.monotonic() >= self._next_line_s:
            print(f"  {stage} {done}/{total} {self.unit}s", file=sys.stderr, flush=True)
            self._next_line_s = time.monotonic() + LINE_EVERY_S
