"""VFHQ's text files, one per clip: frame rate, size of the frame and face box."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pyarrow as pa

from magicdistill.data_pipeline.io.object_stores import Folder, open_text
from magicdistill.data_pipeline.sources.base import Mixture, SourceConfig
from magicdistill.data_pipeline.sources.entries import (
    Entry,
    Fault,
    checked_crop,
    checked_span,
    in_tables,
)
from magicdistill.data_pipeline.sources.stores import Store, Terms
from magicdistill.models.paths import Location

_NAME = re.compile(r"Clip\+(?P<video>.+)\+P\d+\+C\d+\+F(?P<start>\d+)-(?P<stop>\d+)")


class Vfhq(SourceConfig):
    """VFHQ (Xie et al. 2022): one text file per clip, `Clip+<id>+P<p>+C<c>+F<a>-<b>.txt`."""

    kind: Literal["vfhq"] = "vfhq"
    path: Location
    """The folder of the text files."""
    store: Store
    """Where the videos of the data set are kept."""
    license: str = "VFHQ (research only)"
    """License that is recorded for every clip."""
    mixture: Mixture = "portrait"
    """Kind of the clips, which decides their limits."""

    def tables(self, clips_directory: Path) -> Iterator[pa.Table]:
        """Yield the videos of the store that the text files name."""
        folder = self.folder(self.store.path, clips_directory)
        terms = Terms(self.kind, self.license, self.mixture, is_cut=self.store.holds == "clips")
        return self.store.tables(in_tables(entries(self)), folder, terms)


def entries(source: Vfhq) -> Iterator[Entry]:
    """Yield one entry per text file, in the order of their names.

    Raises:
        FileNotFoundError: if the folder does not exist.
    """
    for file_name in Folder(source.path).names():
        if file_name.endswith(".txt"):
            yield _entry(f"{source.path.rstrip('/')}/{file_name}")


def _entry(location: str) -> Entry:
    name = location.rpartition("/")[2].removesuffix(".txt")
    match = _NAME.fullmatch(name)
    if not match:
        return Entry(name, name, fault="bad row: the name is not Clip+<id>+P<p>+C<c>+F<a>-<b>")
    video, fps = match["video"], 0.0
    try:
        facts = _read(location)
        fps = _number(facts, "FPS")
        width, height = _number(facts, "W"), _number(facts, "H")
        t0_s, t1_s = checked_span(int(match["start"]) / fps, int(match["stop"]) / fps)
        if "CROP" not in facts:
            raise Fault("missing crop")
        box = checked_crop(tuple(map(float, facts["CROP"])))
    except OSError as error:
        return Entry(name, video, span_fault=f"bad row: {error}")
    except (Fault, ValueError) as fault:
        # The rate goes along: it is all that pictures of a clip need that is cut already.
        return Entry(name, video, fps=fps, span_fault=str(fault))
    return Entry(name, video, t0_s, t1_s, crop=box, crop_frame=(width, height), fps=fps)


def _read(location: str) -> dict[str, list[str]]:
    """Return the fields of each line by its first word, with or without a colon after it."""
    with open_text(location) as file:
        lines = [line.replace(":", " ").split() for line in file]
    return {line[0]: line[1:] for line in lines if line}


def _number(facts: dict[str, list[str]], key: str) -> float:
    """Return the one value of a line, which has to be positive and finite, or raise Fault."""
    try:
        (text,) = facts[key]
        value = float(text)
    except (KeyError, ValueError) as error:
        raise Fault(f"bad row: no number {key}") from error
    if not 0 < value < math.inf:
        raise Fault(f"bad row: {key} is {value:g}")
    return value
