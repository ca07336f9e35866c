"""One clip as a manifest describes it, and readers for the values in manifests."""

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

_TIME = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:\.\d+)?)")


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
    """Return seconds from `H:MM:SS.mmm`, `HH:MM:SS` or `MM:SS`.

    Raises:
        Fault: if the text is none of them.
    """
    match = _TIME.fullmatch(text.strip())
    if not match:
        raise Fault(f"bad timestamp: {text!r}")
    hours, minutes, seconds = match.groups()
    return int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds)


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


def numbers(prefix: str, values: Mapping[str, object]) -> dict[str, float]:
    """Return scores by the names `<prefix>.<name>`; empty values are left out.

    The names are interned: millions of rows have the same few.

    Raises:
        Fault: if a value is no finite number.
    """
    scores: dict[str, float] = {}
    for name, value in values.items():
        if value is None or value == "":
            continue
        try:
            scores[sys.intern(f"{prefix}.{name}")] = number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise Fault(f"bad score: {name}={value!r}")
    return scores
