"""What a run has to tell MLflow, kept in its folder until it is told."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from magicdistill.data_pipeline.io.whole_files import write_text
from magicdistill.models.config import Config
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.tracking.events import AnyEvent, Event

LINE: TypeAdapter[Event] = TypeAdapter(AnyEvent)


class Progress(Config):
    """How far one store of MLflow has been told."""

    run_id: str | None = None
    """MLflow's name for the run."""
    sent_bytes: int = 0
    """All before this place of the outbox was sent, or put aside."""
    aside: tuple[int, ...] = ()
    """Places of what the store refused though it answers."""


PROGRESS = TypeAdapter(dict[str, Progress])


@dataclass(frozen=True)
class LoggedEvent:
    """An entry and its place, in bytes, from `start` to `end`."""

    start: int
    end: int
    event: Event


class EventLog:
    """Two files of a run: what there is to tell, line by line, and how far each store was told.

    Any thread adds. An entry is on the disk before it is sent, so that nothing is lost.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.path, self._progress_path = run.path / "mlflow.jsonl", run.path / "mlflow-sent.json"
        self._lock = threading.Lock()
        self._cut_torn_line()

    def add(self, event: Event) -> None:
        """Keep an entry for sending."""
        with self._lock, self.path.open("ab") as file:
            file.write(event.model_dump_json().encode() + b"\n")

    def logged_events(self, start: int = 0) -> Iterator[LoggedEvent]:
        """Yield what was added from a place on, but for lines that a full disk has torn."""
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
        """Return how far a store was told."""
        return self._all_progress().get(store, Progress())

    def record(self, store: str, progress: Progress) -> None:
        """Keep how far a store was told."""
        everything = self._all_progress() | {store: progress}
        write_text(self._progress_path, PROGRESS.dump_json(everything, indent=2).decode())

    def num_unsent(self, store: str) -> int:
        """Return how many entries a store lacks."""
        progress = self.progress(store)
        return len(progress.aside) + sum(1 for _ in self.logged_events(progress.sent_bytes))

    def _all_progress(self) -> dict[str, Progress]:
        path: Path = self._progress_path
        return PROGRESS.validate_json(path.read_text()) if path.exists() else {}

    def _cut_torn_line(self) -> None:
        """Drop what a kill left of a line."""
        if self.path.exists():
            whole = self.path.read_bytes().rpartition(b"\n")
            if whole[2]:
                self.path.write_bytes(whole[0] + whole[1])
