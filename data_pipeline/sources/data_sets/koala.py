"""Koala-36M's CSV files: ten of them, 49 GB."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from magicdistill.data_pipeline.io.arrow import pc
from magicdistill.data_pipeline.io.manifests import Rows, read_rows
from magicdistill.data_pipeline.sources.base import Inputs, Mixture, SourceConfig
from magicdistill.data_pipeline.sources.columns import entries_of, mask, scores, spans, text
from magicdistill.data_pipeline.sources.entries import Entry, Fault, numbers, parse_span
from magicdistill.data_pipeline.sources.stores import Store, Terms
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


class Koala(SourceConfig):
    """Koala-36M (Wang et al. 2024): tables of captions and scores, one row per clip."""

    kind: Literal["koala-36m"] = "koala-36m"
    manifests: tuple[Location, ...] = Field(min_length=1)
    """The CSV files of the data set, packed or not, or Parquet or JSON lines with its columns."""
    store: Store
    """Where the videos of the data set are kept."""
    license: str = "Koala-36M (non-commercial research)"
    """License that is recorded for every clip."""
    mixture: Mixture = "general"
    """Kind of the clips, which decides their limits."""
    SCORES: ClassVar = ("koala",)

    def inputs(self) -> Inputs:
        """Return the manifests and the store."""
        return Inputs(self.manifests, [self.store.path])

    def tables(self, clips_directory: Path) -> Iterator[pa.Table]:
        """Yield the videos of the store that the manifests name."""
        folder = self.folder(self.store.path, clips_directory)
        terms = Terms(self.kind, self.license, self.mixture, is_cut=self.store.holds == "clips")
        for manifest in self.manifests:
            entries = map(_entries, read_rows(manifest, COLUMNS))
            yield from self.store.tables(entries, folder, terms)


def _entries(rows: Rows) -> pa.Table:
    names, spans_as_text = text(rows.columns["videoID"]), text(rows.columns["timestamp"])
    named = pc.match_substring_regex(names, r"(?s)^.+_[0-9]+$")
    videos = pc.list_element(pc.split_pattern(names, "_", max_splits=1, reverse=True), 0)
    maps, odd = scores("koala", {short: rows.columns[column] for short, column in SCORES.items()})
    t0_s, t1_s, odd_spans = spans(spans_as_text)
    columns = {
        "name": names,
        "video": videos,
        "t0_s": t0_s,
        "t1_s": t1_s,
        "caption": text(rows.columns["caption"]),
        "imported_scores": maps,
    }
    return entries_of(rows, columns, odd | odd_spans | ~mask(named), _entry)


def _entry(row: dict[str, Any], line: int, fault: str) -> Entry:
    name = str(row["videoID"] or "").strip()
    video, separator, index = name.rpartition("_")  # ids of videos may hold underscores themselves
    if not (separator and video and index.isdigit()):
        return Entry(name, name, fault=fault or f"bad row: line {line} has the videoID {name!r}")
    try:
        if fault:
            raise Fault(fault)
        imported = numbers("koala", {short: row[column] for short, column in SCORES.items()})
    except Fault as found:
        return Entry(name, video, fault=str(found))
    caption = (row["caption"] or "").strip()
    span = row["timestamp"]
    try:
        t0_s, t1_s = parse_span(span if isinstance(span, str) else str(span or ""))
    except Fault as found:
        return Entry(name, video, caption=caption, imported_scores=imported, span_fault=str(found))
    return Entry(name, video, t0_s, t1_s, caption=caption, imported_scores=imported)
