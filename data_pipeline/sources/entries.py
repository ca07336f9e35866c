"""One clip as a manifest describes it, and readers for the values in manifests."""

import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import pyarrow as pa

_TIME = re.compile(r"(?:(\d+):)?(\d+):(\d{1,2}(?:[.,]\d+)?)")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)?(?:[eE][+-]?\d+)?")
_BRACKETS = re.compile(r"\s*[\[(]?(.*?)[\])]?\s*", re.DOTALL)
_QUOTED = re.compile(r"""\s*(["'])([^"']*)\1\s*[,;]?\s*(["'])([^"']*)\3\s*,?\s*""")
_SEPARATOR = re.compile(r"\s*;\s*|,\s+|\s+-\s+|\s+")
ENTRIES_PER_TABLE = 20_000
UNIT_FRAME = (1.0, 1.0)
"""Width and height of the frame in whose units a box of fractions is."""
_NO_NUMBER = ("", "nan", "none", "null", "na", "n/a")
"""What tables have where nobody measured, in lower case."""


@dataclass(frozen=True)
class Entry:
    """One clip of a manifest, usable or not."""

    name: str
    """The clip's name in the manifest."""
    video: str
    """The name of the video that the clip is cut from."""
    t0_s: float = 0.0
    """Start in the video, in seconds."""
    t1_s: float | None = None
    """End in the video, in seconds; None is the video's end."""
    crop: tuple[float, ...] = ()
    """Left, top, right and bottom in units of `crop_frame`, as in `Video`."""
    crop_frame: tuple[float, ...] = ()
    """Width and height of the frame that `crop` was measured on, as in `Video`."""
    caption: str = ""
    """What the data set says of the clip in words; empty if it says nothing."""
    imported_scores: dict[str, float] = field(default_factory=dict)
    """Scores that the data set publishes, by names such as `koala.clarity`."""
    fps: float = 0.0
    """Frames per second of a clip that is stored as a folder of pictures; 0 if unknown."""
    fault: str = ""
    """Reason why the entry cannot be used at all; empty if it can."""
    span_fault: str = ""
    """Reason why the clip cannot be cut from its video; a file cut already can still be used."""


class Fault(Exception):
    """Says that an entry of a manifest is unusable; its message is recorded as the reason."""


def parse_time(text: str) -> float:
    """Return seconds from `H:MM:SS.mmm`, `HH:MM:SS` or `MM:SS`, minutes above 59 among them.

    Raises:
        Fault: if the text is none of them.
    """
    match = _TIME.fullmatch(text.strip())
    if not match:
        raise Fault(f"bad timestamp: {text!r}")
    hours, minutes, seconds = match.groups()
    return int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))


def parse_seconds(text: str) -> float:
    """Return seconds from a number of them or from what `parse_time` reads.

    Raises:
        Fault: if the text is neither.
    """
    if _NUMBER.fullmatch(text.strip()):
        return float(text.replace(",", "."))
    return parse_time(text)


def parse_span(text: str) -> tuple[float, float]:
    """Return start and end in seconds from a text of two times.

    It may be written as a list or tuple in Python or without brackets, and a time in quotes or
    not. It is matched, never evaluated: manifests are data. A comma in a time without quotes is
    read as its decimal point only where a space tells the times apart.

    Raises:
        Fault: if the text is anything else, or the span is negative or empty.
    """
    inner = _BRACKETS.fullmatch(text)
    content = inner[1].strip() if inner else ""
    if quoted := _QUOTED.fullmatch(content):
        times = [quoted[2], quoted[4]]
    else:
        times = _SEPARATOR.split(content)
        times = times if len(times) == 2 else content.split(",")
    if len(times) != 2:
        raise Fault(f"bad timestamp: {text!r}")
    try:
        return checked_span(*map(parse_seconds, times))
    except (Fault, OverflowError) as fault:
        same = isinstance(fault, Fault) and " to " in str(fault)
        raise fault if same else Fault(f"bad timestamp: {text!r}") from fault


def checked_span(t0_s: float, t1_s: float) -> tuple[float, float]:
    """Return a span in seconds if it is valid.

    Raises:
        Fault: if it is negative, empty or not finite.
    """
    if not (math.isfinite(t0_s) and math.isfinite(t1_s) and 0 <= t0_s < t1_s):
        raise Fault(f"bad timestamp: {t0_s:g} to {t1_s:g} s")
    return t0_s, t1_s


def checked_crop(box: tuple[float, ...]) -> tuple[float, ...]:
    """Return a box (left, top, right, bottom), in any unit, if it is valid.

    Raises:
        Fault: if it has not four sides, is empty or is not finite.
    """
    if len(box) != 4 or not all(map(math.isfinite, box)) or box[0] >= box[2] or box[1] >= box[3]:
        raise Fault(f"bad crop: {box}")
    return box


def fractions(box: object) -> tuple[float, ...]:
    """Return a box (left, top, right, bottom) in fractions of the frame, from a list or its text.

    Raises:
        Fault: if it is anything else.
    """
    parts = _BRACKETS.fullmatch(box)[1].split(",") if isinstance(box, str) else box  # type: ignore[index]
    try:
        sides = tuple(map(float, parts))  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise Fault(f"bad crop: {box!r}") from error
    if not all(0 <= side <= 1 for side in sides):
        raise Fault(f"bad crop: {box!r} are no fractions of the frame")
    return checked_crop(sides)


def number(name: str, value: object) -> float | None:
    """Return a score; None where the table has nothing, NaN or a word for it.

    Raises:
        Fault: if it is anything else that is no finite number.
    """
    if value is None or (isinstance(value, str) and value.strip().lower() in _NO_NUMBER):
        return None
    try:
        score = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        score = math.inf
    if math.isinf(score):
        raise Fault(f"bad score: {name}={value!r}")
    return None if math.isnan(score) else score


def numbers(prefix: str, values: Mapping[str, object]) -> dict[str, float]:
    """Return scores by the names `<prefix>.<name>`; those that nobody measured are left out.

    The names are interned: millions of rows have the same few.

    Raises:
        Fault: if a value is no number.
    """
    found = ((name, number(name, value)) for name, value in values.items())
    return {sys.intern(f"{prefix}.{name}"): score for name, score in found if score is not None}


ENTRY_SCHEMA = pa.schema(
    {
        "name": pa.string(),
        "video": pa.string(),
        "t0_s": pa.float64(),
        "t1_s": pa.float64(),
        "crop": pa.list_(pa.float64()),
        "crop_frame": pa.list_(pa.float64()),
        "caption": pa.string(),
        "imported_scores": pa.map_(pa.string(), pa.float64()),
        "fps": pa.float64(),
        "fault": pa.string(),
        "span_fault": pa.string(),
    }
)
"""Columns of a table of entries: the fields of `Entry`."""


def entries_to_table(entries: Sequence[Entry]) -> pa.Table:
    """Return entries as an Arrow table."""
    return pa.Table.from_pylist([vars(entry) for entry in entries], schema=ENTRY_SCHEMA)


def in_tables(entries: Iterable[Entry]) -> Iterator[pa.Table]:
    """Yield entries as tables, some thousands at a time."""
    each = iter(entries)
    while some := list(islice(each, ENTRIES_PER_TABLE)):
        yield entries_to_table(some)
