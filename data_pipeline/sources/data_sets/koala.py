"""Koala-36M's CSV files: ten of them, 49 GB, read row by row."""

import csv
import re
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from magicdistill.data_pipeline.io.object_stores import open_text
from magicdistill.data_pipeline.rows import Video
from magicdistill.data_pipeline.sources.base import Mixture, SourceConfig
from magicdistill.data_pipeline.sources.entries import (
    Entry,
    Fault,
    checked_span,
    numbers,
    parse_time,
)
from magicdistill.data_pipeline.sources.stores import Store
from magicdistill.models.paths import Location

SCORES = {
    "clarity": "clarity_score",
    "aesthetic": "aesthetic_score",
    "motion": "motion_score",
    "suitability": "video_training_suitability_score",
}
"""Columns of the published scores, by the names that they are imported under."""
COLUMNS = ("videoID", "timestamp", "caption", *SCORES.values())
"""Columns that are read; others may be there."""
MAX_FIELD_CHARS = 1 << 20
"""Longest field that is read; a quote that is never closed ends there with an error, instead of
taking the rest of the file into memory."""
_PYTHON_LIST = re.compile(r"""\[\s*["']([^"']*)["']\s*,\s*["']([^"']*)["']\s*\]""")
"""A timestamp, written as a list in Python. It is matched, never evaluated: manifests are data."""


class Koala(SourceConfig):
    """Koala-36M (Wang et al. 2024): CSV files with captions and scores, one row per clip."""

    kind: Literal["koala-36m"] = "koala-36m"
    manifests: tuple[Location, ...] = Field(min_length=1)
    """The CSV files of the data set."""
    store: Store
    """Where the videos of the data set are kept."""
    license: str = "Koala-36M (non-commercial research)"
    """License that is recorded for every clip."""
    mixture: Mixture = "general"
    """Kind of the clips, which decides their limits."""
    SCORES: ClassVar = ("koala",)

    def videos(self, clips_directory: Path) -> Iterator[Video]:
        """Yield the videos of the store that the manifests name."""
        return self.store.videos(entries(self), self.kind, self.license, self.mixture)


def entries(source: Koala) -> Iterator[Entry]:
    """Yield one entry per row of all files.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if a file lacks a column or is no CSV, naming file and line.
    """
    for manifest in source.manifests:
        with open_text(manifest) as file:
            yield from _read(file, manifest)


def _read(file: TextIOWrapper, manifest: str) -> Iterator[Entry]:
    csv.field_size_limit(MAX_FIELD_CHARS)  # of the whole process: a reader has none of its own
    rows = csv.DictReader(file, restkey="surplus")
    lacking = sorted(set(COLUMNS) - set(rows.fieldnames or ()))
    if lacking:
        raise ValueError(f"{manifest} lacks the columns {', '.join(lacking)}")
    try:
        for row in rows:
            yield _entry(row, rows.line_num)
    except csv.Error as error:
        raise ValueError(f"{manifest}, line {rows.line_num}: {error}") from error


def _entry(row: dict[str, Any], line: int) -> Entry:
    name = (row["videoID"] or "").strip()
    video, separator, index = name.rpartition("_")  # ids of videos may hold underscores themselves
    if not (separator and video and index.isdigit()):
        return Entry(name, name, fault=f"bad row: line {line} has the videoID {name!r}")
    try:
        if "surplus" in row or None in row.values():
            raise Fault(f"bad row: line {line} has not as many fields as the header")
        scores = numbers("koala", {short: row[column] for short, column in SCORES.items()})
    except Fault as fault:
        return Entry(name, video, fault=str(fault))
    caption = row["caption"].strip()
    try:
        t0_s, t1_s = _span(row["timestamp"])
    except Fault as fault:
        return Entry(name, video, caption=caption, imported_scores=scores, span_fault=str(fault))
    return Entry(name, video, t0_s, t1_s, caption=caption, imported_scores=scores)


def _span(text: str) -> tuple[float, float]:
    """Return start and end in seconds from a Python list of two times."""
    match = _PYTHON_LIST.fullmatch(text.strip())
    if not match:
        raise Fault(f"bad timestamp: {text!r}")
    return checked_span(parse_time(match[1]), parse_time(match[2]))
