"""Rows of a run's metric files that a store of MLflow lacks, found by their place in the file.

The files themselves are the record of what there is to send: a store needs no second copy of it,
only how far it has come. A training that resumes drops the rows behind its checkpoint and writes
those cycles again. They replay the same numbers, so that a store keeps what it has of a step.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magicdistill.models.config import Config
from magicdistill.platform.runs.row_files import TIME, parse_row
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.tracking.events import Points, Source

SOURCES: Mapping[str, Source] = {
    "metrics": "cycle",
    "checkpoint-scores": "exam",
    "system-metrics": "machine",
}
"""The files, and what event logs of version 0.1 call the source of their points."""


class SentRows(Config):
    """How far the rows of one file were sent to one store."""

    last_row: int = 0
    """Place in bytes of the last row that was sent, or refused."""
    last_step: int | None = None
    """Step of that row; none up to it is sent again."""
    refused: tuple[int, ...] = ()
    """Steps of the rows that the store refused though it answers."""


@dataclass(frozen=True)
class MetricRow:
    """A row and the place in bytes where it starts."""

    start: int
    points: Points


@dataclass(frozen=True)
class MetricFile:
    """One file whose rows come in the order of their steps."""

    name: str
    path: Path
    logged_step: int | None
    """The last step that the run's event log has as points: runs of version 0.1 logged rows."""

    def unsent(self, sent: SentRows) -> Iterator[MetricRow]:
        """Yield the whole rows that a store has not been sent yet."""
        last_step = self.logged_step if sent.last_step is None else sent.last_step
        is_there = any(row.points.step == last_step for row in self._rows_from(sent.last_row, 1))
        # A file that a resumed run cut off and wrote further has another row at that place.
        for row in self._rows_from(sent.last_row if is_there else 0):
            if last_step is None or row.points.step > last_step:
                yield row

    def refused(self, sent: SentRows) -> list[MetricRow]:
        """Return the refused rows that the file still has."""
        if not sent.refused:
            return []
        return [row for row in self._rows_from(0) if row.points.step in sent.refused]

    def _rows_from(self, start: int, limit: int | None = None) -> Iterator[MetricRow]:
        """Yield at most `limit` lines from a place on, without those that are no whole rows."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(start)
            for number, line in enumerate(file):
                if number == limit or not line.endswith(b"\n"):
                    return
                if (row := parse_row(line)) is not None:  # else torn, or no start of a line
                    yield MetricRow(start, _points(SOURCES[self.name], row))
                start += len(line)


def metric_files(run: RunDirectory, logged_steps: Mapping[Source, int]) -> list[MetricFile]:
    """Return a run's files of metrics."""
    paths = (run.metrics_path, run.checkpoint_scores_path, run.system_metrics_path)
    return [
        MetricFile(name, path, logged_steps.get(source))
        for (name, source), path in zip(SOURCES.items(), paths, strict=True)
    ]


def _points(source: Source, row: dict[str, Any]) -> Points:
    """Return a row as points; those of version 0.1 have no time, and get the present one."""
    step, time_ms = row.pop("step"), row.pop(TIME, None)
    now_ms = time.time_ns() // 1_000_000
    return Points(source=source, time_ms=time_ms or now_ms, step=step, values=row)
