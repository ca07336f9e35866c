"""The rows of the pipeline: videos that sources list, and the clips found in them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy.typing as npt
import pyarrow as pa

Array = npt.NDArray[Any]
UNREACHABLE = "unreachable"
"""Begins the reason of a temporary failure, such as a broken connection."""


def digest(*parts: object) -> str:
    """Return a short stable hash of the parts' text."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Video:
    """A file of a source, before anything is known about its content."""

    video_id: str
    source_id: str
    """Names the origin to people, for reports and takedowns."""
    uri: str
    """Where the content comes from, independent of this machine where possible."""
    path: str
    """Local file, which a rendered source writes on first use; empty where content is remote."""
    fingerprint: str
    """Changes whenever the content may have changed."""
    license: str
    mixture: str
    split_shots: bool = False
    """Whether each shot becomes a clip of its own."""
    entry: str = ""
    """What the source's manifest calls this clip."""
    t0_s: float = 0.0
    """Where the clip starts in the file, in seconds."""
    t1_s: float | None = None
    """Where it ends; null is the file's end."""
    crop: tuple[float, ...] = ()
    """Left, top, right and bottom in units of `crop_frame`; empty is the whole frame."""
    crop_frame: tuple[float, ...] = ()
    """Width and height of the frame that the crop was measured on; a width of 0 is unknown."""
    time_scale: float = 1.0
    """How many times longer than filmed the clip is played."""
    caption: str = ""
    imported_scores: dict[str, float] = field(default_factory=dict)
    """What the source's authors measured, by names such as `koala.clarity`; never our own."""
    fault: str = ""
    """Why the clip cannot be used, where the listing knows: it is recorded and never opened."""


@dataclass(frozen=True)
class ClipRow:
    """A span of a video with its scores, or the reason why it could not be scored."""

    clip_id: str
    video: Video
    """The listed video. A row that was stored knows only the video's `STORED` fields; its span,
    crop and fault have their defaults then, because `start`, `stop`, `crop` and `failure` hold
    what became of them."""
    measures: str
    """Version of the settings under which the scores were taken."""
    start: int = 0
    """First frame, at the video's own rate."""
    stop: int = 0
    """One past the last frame."""
    content_hash: str = ""
    """Of the whole file."""
    decoder: str = ""
    width: int = 0
    """Of the crop, in pixels."""
    height: int = 0
    fps: float = 0.0
    """Frames per second at which the clip is played: the file's over `time_scale`."""
    num_frames_header: int = 0
    """Frames that the file announces, or that the source's span spells."""
    num_frames_decoded: int = 0
    num_cuts: int = 0
    motion_px: float | None = None
    """Mean optical flow; null where the span is shorter than one sampling step."""
    failure: str = ""
    crop: tuple[int, ...] = ()
    """Left, top, right and bottom in pixels; empty is the whole frame."""
    scores: dict[str, float | None] = field(default_factory=dict)
    """What our scorers measured, by `<scorer>.<score>`; null where it could not be measured."""
    scorers: dict[str, str] = field(default_factory=dict)
    """Version of each scorer that has seen the clip, or why it is absent."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    """What duplicates are found by: hashes and embeddings, by scorer."""


STORED = (
    *("video_id", "source_id", "uri", "path", "fingerprint", "license", "mixture"),
    *("entry", "time_scale", "caption", "imported_scores"),
)
"""Fields of a clip's video that its row keeps in the ledger."""
CLIP_COLUMNS = (
    "clip_id",
    *("video_id", "source_id", "uri", "path", "fingerprint", "license", "mixture"),
    *("measures", "start", "stop", "content_hash", "decoder", "width", "height", "fps"),
    *("num_frames_header", "num_frames_decoded", "num_cuts", "motion_px", "failure"),
    *("entry", "crop", "time_scale", "caption", "imported_scores", "scores", "scorers", "blobs"),
)
"""Columns of the ledger's files: fields of clip and video side by side, `crop` the clip's. Ledgers
that exist have these names in this order, so they change only by additions at the end."""

_ARROW_TYPES = {
    int: pa.int64(),
    float: pa.float64(),
    float | None: pa.float64(),
    str: pa.string(),
    bool: pa.bool_(),
    tuple[int, ...]: pa.list_(pa.int64()),
    tuple[float, ...]: pa.list_(pa.float64()),
    dict[str, float]: pa.map_(pa.string(), pa.float64()),
    dict[str, float | None]: pa.map_(pa.string(), pa.float64()),
    dict[str, str]: pa.map_(pa.string(), pa.string()),
    dict[str, bytes]: pa.map_(pa.string(), pa.binary()),
}


def _arrow_types(kind: type[Video] | type[ClipRow]) -> dict[str, pa.DataType]:
    return {f.name: _ARROW_TYPES[f.type] for f in fields(kind) if f.type is not Video}  # type: ignore[index]


VIDEO_SCHEMA = pa.schema(_arrow_types(Video))
_CLIP_TYPES = _arrow_types(Video) | _arrow_types(ClipRow)
CLIP_SCHEMA = pa.schema({name: _CLIP_TYPES[name] for name in CLIP_COLUMNS})


def videos_to_table(videos: Sequence[Video]) -> pa.Table:
    """Return videos as an Arrow table."""
    return pa.Table.from_pylist([vars(video) for video in videos], schema=VIDEO_SCHEMA)


def clips_to_table(clips: Sequence[ClipRow]) -> pa.Table:
    """Return clips as an Arrow table."""
    records = [vars(clip.video) | vars(clip) for clip in clips]
    return pa.Table.from_pylist(records, schema=CLIP_SCHEMA)  # which picks its own columns


def videos_from_table(table: pa.Table) -> list[Video]:
    """Return the videos of a table made by `videos_to_table`."""
    return [Video(**values) for values in _rows(table)]


def clips_from_table(table: pa.Table) -> list[ClipRow]:
    """Return the clips of a table made by `clips_to_table`, now or by an older version.

    Columns that did not exist when a part was written read as null and take their defaults.
    """
    clips: list[ClipRow] = []
    for values in _rows(table):
        listed = {name: values.pop(name) for name in STORED if name in values}
        clips.append(ClipRow(video=Video(**listed), **values))
    return clips


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return a table's rows without nulls, with tuples where Arrow has lists."""
    return [
        {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in record.items()
            if value is not None
        }
        for record in table.to_pylist(maps_as_pydicts="strict")
    ]


def is_temporary(failure: str) -> bool:
    """Tell whether a failure's reason is temporary, so that the next run tries again."""
    return f"{UNREACHABLE}: " in failure


def failed(video: Video, measures: str, reason: str) -> ClipRow:
    """Return the row of a video that could not be scored."""
    return ClipRow(digest(video.video_id, "failed"), video, measures, failure=reason)
