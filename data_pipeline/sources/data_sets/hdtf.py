"""HDTF's text files: addresses, resolutions, spans and crops of three sets of videos."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa

from magicdistill.data_pipeline.io.object_stores import open_text
from magicdistill.data_pipeline.sources.base import Mixture, SourceConfig
from magicdistill.data_pipeline.sources.entries import (
    Entry,
    Fault,
    checked_crop,
    checked_span,
    in_tables,
    parse_time,
)
from magicdistill.data_pipeline.sources.stores import Store, Terms
from magicdistill.models.paths import Location

Rows = dict[str, list[str]]
"""The other fields of each line of a file, by the first."""


class Hdtf(SourceConfig):
    """HDTF (Zhang et al. 2021): text files of spans and face crops for three sets of videos."""

    kind: Literal["hdtf"] = "hdtf"
    path: Location
    """The folder of `RD_annotion_time.txt` and the others, spelt as published."""
    splits: tuple[Literal["RD", "WDA", "WRA"], ...] = ("RD", "WDA", "WRA")
    """Sets of videos that are taken."""
    store: Store
    """Where the videos of the data set are kept."""
    license: str = "CC BY 4.0"
    """License that is recorded for every clip."""
    mixture: Mixture = "portrait"
    """Kind of the clips, which decides their limits."""

    def tables(self, clips_directory: Path) -> Iterator[pa.Table]:
        """Yield the videos of the store that the text files name."""
        folder = self.folder(self.store.path, clips_directory)
        terms = Terms(self.kind, self.license, self.mixture, is_cut=self.store.holds == "clips")
        return self.store.tables(in_tables(entries(self)), folder, terms)


def entries(source: Hdtf) -> Iterator[Entry]:
    """Yield the clips of every video: clip k of a video is its k-th span, counted from 0.

    The published files do not agree everywhere. A video that has an address but no span yields one
    faulty entry, and so does a crop without a span, so that nothing is missing without a reason.

    Raises:
        FileNotFoundError: if one of the text files does not exist.
    """
    for split in source.splits:
        stem = f"{source.path.rstrip('/')}/{split}"
        spans, crops, resolutions, urls = (
            _read(f"{stem}_{kind}.txt")
            for kind in ("annotion_time", "crop_wh", "resolution", "video_url")
        )
        for video in {**spans, **urls}:
            found = spans.get(video, [])
            if not found:
                yield Entry(video, video, fault="missing span")
            for index, span in enumerate(found):
                name = f"{video}_{index}"
                yield _entry(name, video, span, crops.pop(name, None), resolutions.get(video, ()))
        for name in crops:
            yield Entry(name, name.rpartition("_")[0] or name, span_fault="missing span")


def _read(location: str) -> Rows:
    """Return the fields of each line by the first, without the suffix that some files write.

    A further line of the same name adds its fields, so that none is lost, unless it repeats them.
    """
    rows: Rows = {}
    with open_text(location) as file:
        for name, *fields in filter(None, map(str.split, file)):
            known = rows.setdefault(name.removesuffix(".mp4"), [])
            known += fields if fields != known else ()
    return rows


def _entry(
    name: str, video: str, span: str, crop: list[str] | None, resolution: Sequence[str]
) -> Entry:
    try:
        start, _, stop = span.partition("-")
        t0_s, t1_s = checked_span(parse_time(start), parse_time(stop))
        if crop is None:
            raise Fault("missing crop")
        box, height = _box(crop), _height(resolution)
    except Fault as fault:
        return Entry(name, video, span_fault=str(fault))
    return Entry(name, video, t0_s, t1_s, crop=box, crop_frame=(0.0, height))


def _box(fields: list[str]) -> tuple[float, ...]:
    """Return the box of a row `left width top height`, in pixels of the reference resolution."""
    try:
        left, width, top, height = map(float, fields)
    except ValueError as error:
        raise Fault(f"bad crop: {' '.join(fields)!r}") from error
    return checked_crop((left, top, left + width, top + height))


def _height(fields: Sequence[str]) -> float:
    """Return the height in pixels of the frame that the crop was measured on.

    Its width is not published: it follows from the aspect of the video.
    """
    if len(fields) != 1 or not fields[0].isdigit() or int(fields[0]) == 0:
        raise Fault(f"bad resolution: {' '.join(fields)!r}")
    return float(fields[0])
