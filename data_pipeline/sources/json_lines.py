"""The generic manifest: one JSON object per line."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args
from urllib.parse import unquote

import pyarrow as pa
from pydantic import Field

from magicdistill.data_pipeline.io import object_stores
from magicdistill.data_pipeline.scorers.registry import score_names
from magicdistill.data_pipeline.sources.base import Mixture, SourceConfig
from magicdistill.data_pipeline.sources.entries import (
    ENTRIES_PER_TABLE,
    UNIT_FRAME,
    Entry,
    Fault,
    checked_span,
    entries_to_table,
    fractions,
    numbers,
    parse_time,
)
from magicdistill.data_pipeline.sources.stores import Terms, listed_at
from magicdistill.models.paths import OBJECT_STORES, Location, scheme_of

# A misspelt optional field would pass unnoticed, so fields that are neither are faults.
REQUIRED = ("source_id", "dataset", "uri", "license")
OPTIONAL = ("t0", "t1", "bbox", "caption", "mixture", "imported_scores")
_BUCKET = re.compile(f"{object_stores.REMOTE}://[^/]")


class JsonLines(SourceConfig):
    """Any other collection, one JSON object per line.

    A line has `source_id`, `dataset`, `uri` and `license`, and may have `t0` and `t1` (seconds or
    `H:MM:SS.mmm`), `bbox` (left, top, right, bottom as fractions of the frame), `caption`,
    `mixture` and `imported_scores`. No `dataset` may have the name of one of our own scorers, as
    imported scores are called `<dataset>.<name>`.
    """

    kind: Literal["jsonl"] = "jsonl"
    manifests: tuple[Location, ...] = Field(min_length=1)
    """The files of JSON lines."""
    root: Location | None = None
    """Folder or address that relative `uri`s start from, by default the folder of the manifest."""
    mixture: Mixture
    """The mixture of lines that name none."""
    split_shots: bool = False
    """Cut films into their shots, as in `folder`."""
    SCORES: ClassVar = None

    def tables(self, clips_directory: Path) -> Iterator[pa.Table]:
        """Yield one video per line."""
        open_folder = cache(partial(self.folder, clips_directory=clips_directory))
        each = lines(self)
        while some := list(islice(each, ENTRIES_PER_TABLE)):
            entries = entries_to_table([line.entry for line in some])
            roots = (self.root or line.manifest.rpartition("/")[0] or "." for line in some)
            places = [split_address(line.uri, root) for line, root in zip(some, roots, strict=True)]
            dataset, licence, mixture = (
                pa.array([getattr(line, field) for line in some], pa.string())
                for field in ("dataset", "license", "mixture")
            )
            terms = Terms(dataset, licence, mixture, split_shots=self.split_shots)
            yield listed_at(entries, places, open_folder, terms)


@dataclass(frozen=True)
class Line:
    """One line of a manifest, usable or not."""

    entry: Entry
    manifest: str
    """Location of the manifest."""
    dataset: str
    """Name of the data set, `unknown` where the line has none."""
    uri: str
    """Address or path of the clip's file as the line has it, perhaps relative."""
    license: str
    mixture: str
    """The line's mixture, by default the source's."""


def lines(source: JsonLines) -> Iterator[Line]:
    """Yield the lines of all files, in order; a line that cannot be used has an entry with a fault.

    Raises:
        FileNotFoundError: if a file does not exist.
    """
    for manifest in source.manifests:
        for number, facts in enumerate(object_stores.read_json_lines(manifest), 1):
            yield _line(facts, manifest, number, source.mixture)


def _line(facts: Any, manifest: str, number: int, mixture: str) -> Line:
    where = f"line {number} of {manifest.rpartition('/')[2]}"
    facts = facts if isinstance(facts, dict) else {}
    texts = {key: facts[key] if isinstance(facts.get(key), str) else "" for key in REQUIRED}
    entry = Entry(texts["uri"] or where, texts["source_id"] or where)
    try:
        lacking = [key for key, text in texts.items() if not text]
        if lacking:
            raise Fault(f"bad row: {where} lacks {', '.join(lacking)}")
        unknown = sorted(facts.keys() - {*REQUIRED, *OPTIONAL})
        if unknown:
            raise Fault(f"bad row: {where} has unknown fields {', '.join(unknown)}")
        if texts["dataset"].partition(".")[0] in score_names():
            raise Fault(f"bad row: {where} has the dataset {texts['dataset']!r}, a scorer's name")
        mixture = str(facts.get("mixture") or mixture)
        if mixture not in get_args(Mixture):
            raise Fault(f"bad row: {where} has the mixture {mixture!r}")
        entry = _entry(facts, entry)
    except Fault as fault:
        # The entry is called by its line: without a span it would have the identity of the whole
        # file, or of another bad line about it.
        entry = Entry(f"{manifest}:{number}", entry.video, fault=str(fault))
    return Line(
        entry, manifest, texts["dataset"] or "unknown", texts["uri"], texts["license"], mixture
    )


def _entry(facts: dict[str, Any], named: Entry) -> Entry:
    demand_address(named.name)
    start, stop, box = facts.get("t0"), facts.get("t1"), facts.get("bbox")
    t0_s = 0.0 if start is None else _seconds(start)
    t1_s = None if stop is None else _seconds(stop)
    # Where the end is the file's, which is not known yet, only the start is checked.
    checked_span(t0_s, t0_s + 1 if t1_s is None else t1_s)
    scores = facts.get("imported_scores") or {}
    if not isinstance(scores, dict):
        raise Fault(f"bad score: {scores!r}")
    return Entry(
        named.name,
        named.video,
        t0_s,
        t1_s,
        crop=() if box is None else fractions(box),
        crop_frame=() if box is None else UNIT_FRAME,
        caption=str(facts.get("caption") or "").strip(),
        imported_scores=numbers(str(facts["dataset"]), scores),
    )


def demand_address(uri: str) -> None:
    """Raise Fault where an address is neither a file's nor an object's."""
    scheme = scheme_of(uri)
    if scheme not in (None, "file", *OBJECT_STORES):
        raise Fault(f"bad address: {uri!r} is at {scheme}://; copy it to s3:// or a folder")


def _seconds(value: Any) -> float:
    if isinstance(value, str):
        return parse_time(value)
    if isinstance(value, int | float):
        return float(value)
    raise Fault(f"bad timestamp: {value!r}")


def split_address(uri: str, root: str) -> tuple[str, str]:
    """Return the folder to look in for a manifest's address, and the file's name below it.

    All files below `root` have that one folder, so that an object store is listed once for them.
    Other objects are looked for in the folder that holds them, other local files below `/`.
    """
    root = root.rstrip("/")
    if uri.startswith("file://"):
        uri = unquote(f"/{uri.removeprefix('file://').partition('/')[2]}")
    if uri.startswith(f"{root}/"):
        return root, uri.removeprefix(f"{root}/")
    folder, _, name = uri.rpartition("/")
    if _BUCKET.match(folder):
        return folder, name
    return ("/", uri.removeprefix("/")) if uri.startswith("/") else (root, uri)
