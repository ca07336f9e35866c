"""Measure where the time of a cycle goes: named spans of code, which may be nested."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch


class Span(NamedTuple):
    """A finished span of code."""

    name: str
    outer: str | None
    """Name of the span around it; None if there is none."""
    start: Any
    """Seconds of `perf_counter`, or a CUDA event on GPUs; likewise `end`."""
    end: Any

    @property
    def seconds(self) -> float:
        """Duration in seconds; on a GPU only known once it has finished the work."""
        if isinstance(self.start, float):
            return self.end - self.start
        return self.start.elapsed_time(self.end) / 1000


class StepTimer:
    """Adds up the times of all `span`s in the code that runs inside `running`.

    A GPU runs behind the CPU, so there the marks are events in its stream, and nothing waits for
    it until `take`.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.on_gpu = torch.device(device).type == "cuda"
        self.spans: list[Span] = []
        self.open: list[str] = []
        self.began_s = time.perf_counter()
        """When `running` was entered last."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let every `span` inside the body report to this timer."""
        token = _running.set(self)
        self.began_s = time.perf_counter()
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
        """Return the seconds of each name since the last call, less the time of nested spans."""
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


_running: ContextVar[StepTimer | None] = ContextVar("step_timer", default=None)


@contextmanager
def span(name: str) -> Iterator[None]:
    """Report the time of the body to the running StepTimer, if there is one."""
    step_timer = _running.get()
    if step_timer is None:
        yield
        return
    with step_timer.measure(name):
        yield
