"""What a run sends to MLflow beside the rows of its metrics, kept in its folder until then."""

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from pydantic import Field, TypeAdapter, ValidationError

from magicdistill.data_pipeline.io.whole_files import write_text
from magicdistill.models.config import Config
from magicdistill.platform.runs.row_files import append_line
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.tracking.events import AnyEvent, Event, Points, Source
from magicdistill.platform.tracking.metric_rows import MetricFile, SentRows, metric_files

LINE: TypeAdapter[Event] = TypeAdapter(AnyEvent)


class Progress(Config):
    """How far one store of MLflow has received a run."""

    run_id: str | None = None
    """The store's own identifier of the run."""
    sent_bytes: int = 0
    """Place in the event log up to which all was sent, or put aside."""
    aside: tuple[int, ...] = ()
    """Places of the events that the store refused though it answers."""
    rows: dict[str, SentRows] = Field(default_factory=dict)
    """How far the files of metrics were sent, by name."""


PROGRESS = TypeAdapter(dict[str, Progress])


@dataclass(frozen=True)
class LoggedEvent:
    """An event and its place in the log in bytes, from `start` to `end`."""

    start: int
    end: int
    event: Event


class EventLog:
    """Two files of a run: its events, one a line, and how far each store has received the run.

    Any thread adds. An event is on the disk before it is sent, so that nothing is lost.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self.path, self._progress_path = run.path / "mlflow.jsonl", run.path / "mlflow-sent.json"
        self._lock = threading.Lock()
        self._cut_torn_line()

    def add(self, event: Event) -> None:
        """Keep an event for sending."""
        with self._lock:
            append_line(self.path, event.model_dump_json())

    def logged_events(self, start: int = 0) -> Iterator[LoggedEvent]:
        """Yield what was added from a place on, except lines that are damaged."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                with suppress(ValidationError):
                    yield LoggedEvent(start, start + len(line), LINE.validate_json(line))
                start += len(line)

    def progress(self, store: str) -> Progress:
        """Return how far a store has received the run."""
        return self._all_progress().get(store, Progress())

    def record(self, store: str, progress: Progress) -> None:
        """Keep how far a store has received the run."""
        everything = self._all_progress() | {store: progress}
        write_text(self._progress_path, PROGRESS.dump_json(everything, indent=2).decode())

    def num_unsent(self, store: str) -> int:
        """Return how many events and rows of metrics a store lacks."""
        progress = self.progress(store)
        events = len(progress.aside) + sum(1 for _ in self.logged_events(progress.sent_bytes))
        for file in self.metric_files:
            sent = progress.rows.get(file.name, SentRows())
            events += len(file.refused(sent)) + sum(1 for _ in file.unsent(sent))
        return events

    @cached_property
    def metric_files(self) -> list[MetricFile]:
        """The run's files of metrics, whose rows are no events."""
        steps: dict[Source, int] = {}
        for logged in self.logged_events():
            if isinstance(points := logged.event, Points):
                steps[points.source] = max(points.step, steps.get(points.source, points.step))
        return metric_files(self._run, steps)

    def next_number(self, name: str) -> int:
        """Return the step of the next row of a metrics file that numbers its rows."""
        file = next(file for file in self.metric_files if file.name == name)
        steps = [row.points.step for row in file.unsent(SentRows())]
        return max([-1 if file.logged_step is None else file.logged_step, *steps]) + 1

    def _all_progress(self) -> dict[str, Progress]:
        """Return the progress by store: none where the file is damaged, and all is sent again."""
        with suppress(FileNotFoundError, ValidationError):
            return PROGRESS.validate_json(self._progress_path.read_bytes())
        return {}

    def _cut_torn_line(self) -> None:
        """Drop what a kill left of a line."""
        if self.path.exists():
            *whole, torn = self.path.read_bytes().rpartition(b"\n")
            if torn:
                os.truncate(self.path, sum(map(len, whole)))
