"""OpenVid-1M's CSV files.

Its page, huggingface.co/datasets/nkp37/OpenVid-1M, has them in `data/train`: `OpenVid-1M.csv` and
`OpenVidHD.csv`, both with the columns `video, caption, aesthetic score, motion score, temporal
consistency score, camera motion, frame, fps, seconds`, and the clips in zip archives.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from magicdistill.data_pipeline.io.arrow import pc
from magicdistill.data_pipeline.io.manifests import Rows, read_rows
from magicdistill.data_pipeline.sources.base import Inputs, Mixture, SourceConfig
from magicdistill.data_pipeline.sources.columns import entries_of, mask, scores, text
from magicdistill.data_pipeline.sources.entries import Entry, Fault, numbers
from magicdistill.data_pipeline.sources.stores import Store, Terms
from magicdistill.models.paths import Location

SCORES = {
    "aesthetic": "aesthetic score",
    "motion": "motion score",
    "temporal_consistency": "temporal consistency score",
}
"""Columns of the published scores, by the names that they are imported under."""
REQUIRED = ("video", "caption")
_CLIP = r"(?s)^(?P<clip>(?P<film>.{11})_[0-9]+(?:_[0-9]+to[0-9]+)?)\.mp4$"
"""Clips of YouTube, `<id>_<scene>_<first frame>to<last>.mp4`; others are called by their file."""


class OpenVid(SourceConfig):
    """OpenVid-1M (Nan et al. 2024): tables of cut clips with captions and scores."""

    kind: Literal["openvid-1m"] = "openvid-1m"
    manifests: tuple[Location, ...] = Field(min_length=1)
    """The CSV files of the data set, packed or not, or Parquet or JSON lines with its columns."""
    store: Store
    """Where the clips of the data set are kept, `{name}.mp4`."""
    license: str = "OpenVid-1M (CC BY 4.0; the videos are others')"
    """License that is recorded for every clip."""
    mixture: Mixture = "general"
    """Kind of the clips, which decides their limits."""
    SCORES: ClassVar = ("openvid",)

    def inputs(self) -> Inputs:
        """Return the manifests and the store."""
        return Inputs(self.manifests, [self.store.path])

    def tables(self, clips_directory: Path) -> Iterator[pa.Table]:
        """Yield the clips of the store that the manifests name."""
        folder = self.folder(self.store.path, clips_directory)
        terms = Terms(self.kind, self.license, self.mixture, is_cut=True)
        for manifest in self.manifests:
            entries = map(_entries, read_rows(manifest, REQUIRED, tuple(SCORES.values())))
            yield from self.store.tables(entries, folder, terms)


def _entries(rows: Rows) -> pa.Table:
    files = text(rows.columns["video"])
    parts = pc.extract_regex(files, _CLIP)
    maps, odd = scores("openvid", {short: rows.columns[name] for short, name in SCORES.items()})
    columns = {
        "name": pc.fill_null(parts.field("clip"), ""),
        "video": pc.fill_null(parts.field("film"), ""),
        "caption": text(rows.columns["caption"]),
        "imported_scores": maps,
    }
    return entries_of(rows, columns, odd | mask(parts.is_null()), _entry)


def _entry(row: dict[str, Any], line: int, fault: str) -> Entry:
    file = str(row["video"] or "").strip()
    name = file.removesuffix(".mp4")
    clip = re.match(_CLIP, file)
    film = clip["film"] if clip else name
    if not name:
        return Entry(
            f"line {line}", f"line {line}", fault=fault or f"bad row: line {line} has no video"
        )
    try:
        if fault:
            raise Fault(fault)
        imported = numbers("openvid", {short: row[column] for short, column in SCORES.items()})
    except Fault as found:
        return Entry(name, film, fault=str(found))
    return Entry(name, film, caption=str(row["caption"] or "").strip(), imported_scores=imported)
