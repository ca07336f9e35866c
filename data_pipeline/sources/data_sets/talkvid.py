"""TalkVid's JSON lines, or the same objects as one JSON list."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
from pydantic import Field

from magicdistill.data_pipeline.io.object_stores import read_json, read_json_lines
from magicdistill.data_pipeline.sources.base import Inputs, Mixture, SourceConfig
from magicdistill.data_pipeline.sources.entries import (
    Entry,
    Fault,
    checked_span,
    in_tables,
    numbers,
)
from magicdistill.data_pipeline.sources.stores import Store, Terms
from magicdistill.models.paths import Location


class TalkVid(SourceConfig):
    """TalkVid (Chen et al. 2025): JSON lines, or one JSON list, with captions and scores."""

    kind: Literal["talkvid"] = "talkvid"
    manifests: tuple[Location, ...] = Field(min_length=1)
    """The JSON files of the data set."""
    store: Store
    """Where the videos of the data set are kept."""
    license: str = "CC BY-NC 4.0"
    """License that is recorded for every clip."""
    mixture: Mixture = "portrait"
    """Kind of the clips, which decides their limits."""
    SCORES: ClassVar = ("talkvid",)

    def inputs(self) -> Inputs:
        """Return the manifests and the store."""
        return Inputs(self.manifests, [self.store.path])

    def tables(self, clips_directory: Path) -> Iterator[pa.Table]:
        """Yield the videos of the store that the manifests name."""
        folder = self.folder(self.store.path, clips_directory)
        terms = Terms(self.kind, self.license, self.mixture, is_cut=self.store.holds == "clips")
        return self.store.tables(in_tables(entries(self)), folder, terms)


def entries(source: TalkVid) -> Iterator[Entry]:
    """Yield one entry per object of all files.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if a file that ends in `.json` is no JSON list.
    """
    for manifest in source.manifests:
        for line, facts in enumerate(_objects(manifest), 1):
            yield _entry(facts, line)


def _objects(manifest: str) -> Iterator[Any]:
    """Return the objects of a file: a JSON list if its name ends in `.json`, else one per line."""
    if not manifest.endswith(".json"):
        return read_json_lines(manifest)
    content = read_json(manifest)
    if not isinstance(content, list):
        raise ValueError(f"{manifest} is no JSON list")
    return iter(content)


def _entry(facts: Any, line: int) -> Entry:
    if not isinstance(facts, dict) or not isinstance(facts.get("id"), str):
        return Entry(f"line {line}", f"line {line}", fault=f"bad row: line {line} has no id")
    name, video = facts["id"], facts["id"]
    try:
        # The id of the video is the parameter `v` of its link, or the last part of a short link.
        link = urlsplit(facts["info"]["Video Link"])
        video = (parse_qs(link.query).get("v") or [link.path.rpartition("/")[2]])[0] or name
        scores = numbers("talkvid", _scores(facts))
    except Fault as fault:
        return Entry(name, video, fault=str(fault))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return Entry(name, video, fault=f"bad row: {type(error).__name__}: {error}")
    caption = str(facts.get("description") or "").strip()
    try:
        t0_s, t1_s = checked_span(float(facts["start-time"]), float(facts["end-time"]))
    except (Fault, KeyError, TypeError, ValueError) as error:
        reason = str(error) if isinstance(error, Fault) else f"bad timestamp: {error}"
        return Entry(name, video, caption=caption, imported_scores=scores, span_fault=reason)
    return Entry(name, video, t0_s, t1_s, caption=caption, imported_scores=scores)


def _scores(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the published scores, of which an object may lack some, by their short names."""
    details = facts.get("head_detail") or {}
    return {
        "dover": facts.get("dover_scores"),
        "cotracker_ratio": facts.get("cotracker_ratio"),
        **(details.get("scores") or {}),
    }
