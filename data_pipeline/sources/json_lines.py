"""The generic manifest: one JSON object per line."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from magicdistill.data_pipeline.io.object_stores import read_json_lines
from magicdistill.data_pipeline.scorers import score_names
from magicdistill.data_pipeline.sources.config import JsonLines, Mixture
from magicdistill.data_pipeline.sources.entries import (
    Entry,
    Fault,
    checked_crop,
    checked_span,
    numbers,
    parse_time,
)

UNIT_FRAME = (1.0, 1.0)
REQUIRED = ("source_id", "dataset", "uri", "license")
OPTIONAL = ("t0", "t1", "bbox", "caption", "mixture", "imported_scores")


@dataclass(frozen=True)
class Line:
    """One object: what it says of a clip, and where and whose the clip is."""

    entry: Entry
    manifest: str
    dataset: str
    uri: str
    license: str
    mixture: str


def lines(source: JsonLines) -> Iterator[Line]:
    """Yield the lines of all files.

    Raises:
        FileNotFoundError: if a file does not exist.
    """
    for manifest in source.manifests:
        for number, facts in enumerate(read_json_lines(manifest), 1):
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
        # By its line: without its span it would pass for the whole file, or another bad line.
        entry = Entry(f"{manifest}:{number}", entry.video, fault=str(fault))
    return Line(
        entry, manifest, texts["dataset"] or "unknown", texts["uri"], texts["license"], mixture
    )


def _entry(facts: dict[str, Any], named: Entry) -> Entry:
    start, stop, box = facts.get("t0"), facts.get("t1"), facts.get("bbox")
    t0_s = 0.0 if start is None else _seconds(start)
    t1_s = None if stop is None else _seconds(stop)
    checked_span(t0_s, t0_s + 1 if t1_s is None else t1_s)
    scores = facts.get("imported_scores") or {}
    if not isinstance(scores, dict):
        raise Fault(f"bad score: {scores!r}")
    return Entry(
        named.name,
        named.video,
        t0_s,
        t1_s,
        crop=() if box is None else _fractions(box),
        crop_frame=() if box is None else UNIT_FRAME,
        caption=str(facts.get("caption") or "").strip(),
        imported_scores=numbers(str(facts["dataset"]), scores),
    )


def _seconds(value: Any) -> float:
    if isinstance(value, str):
        return parse_time(value)
    if isinstance(value, int | float):
        return float(value)
    raise Fault(f"bad timestamp: {value!r}")


def _fractions(box: Any) -> tuple[float, ...]:
    try:
        sides = tuple(map(float, box))
    except (TypeError, ValueError) as error:
        raise Fault(f"bad crop: {box!r}") from error
    if not all(0 <= side <= 1 for side in sides):
        raise Fault(f"bad crop: {box!r} are no fractions of the frame")
    return checked_crop(sides)
