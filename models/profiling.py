"""Where the time of a cycle goes: named stretches of code, one inside another."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch


class Span(NamedTuple):
    """A finished stretch; its marks are seconds, or CUDA events where a GPU works apart."""

    name: str
    outer: str | None
    start: Any
    end: Any

    @property
    def seconds(self) -> float:
        """How long it took."""
        if isinstance(self.start, float):
            return self.end - self.start
        return self.start.elapsed_time(self.end) / 1000


class StepTimer:
    """Adds up the spans of the code that runs inside `running`.

    On a GPU the marks are events in its stream: nothing waits for it until `take`.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.on_gpu = torch.device(device).type == "cuda"
        self.spans: list[Span] = []
        self.open: list[str] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let `span` report here."""
        token = _running.set(self)
        try:
            yield
        finally:
            _running.reset(token)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Time the body."""
        outer = self.open[-1] if self.open else None
        self.open.append(name)
        start = self._mark()
        try:
            yield
        finally:
            self.open.pop()
            self.spans.append(Span(name, outer, start, self._mark()))

    def take(self) -> dict[str, float]:
        """Return the seconds of each name since the last call, without those of spans inside."""
        if self.on_gpu:
            torch.cuda.synchronize()
        seconds: dict[str, float] = {}
        for span in self.spans:
            seconds[span.name] = seconds.get(span.name, 0.0) + span.seconds
            if span.outer is not None:
                seconds[span.outer] = seconds.get(span.outer, 0.0) - span.seconds
        self.spans.clear()
        return seconds

    def _mark(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


_running: ContextVar[StepTimer | None] = ContextVar("stopwatch", default=None)


@contextmanager
def span(name: str) -> Iterator[None]:
    """Report the time of the body to the stopwatch that runs, if one does."""
    step_timer = _running.get()
    if step_timer is None:
        yield
        return
    with step_timer.measure(name):
        yield
