"""Rows of the pipeline: videos that sources list, and clips found in them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy.typing as npt
import pyarrow as pa

Array = npt.NDArray[Any]
CHECKED_STEP = 32
"""Frames from one that has a checksum to the next."""
UNREACHABLE = "unreachable"
"""Begins the reason of a temporary failure, such as a broken connection."""


def digest(*parts: object) -> str:
    """Return 20 hexadecimal digits of a SHA-256 over the parts' text, the same in every process."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Video:
    """A file, or a span of one, as a source lists it: nothing of its content is known yet."""

    video_id: str
    source_id: str
    """Names the origin, such as `<data set>/<film>`, for reports, caps and takedowns."""
    uri: str
    """Address of the content, the same on every machine where possible."""
    path: str
    """Local file, which a rendered clip gets at its first use; empty if the content is remote."""
    fingerprint: str
    """Changes whenever the content may have changed: size and time of a file, ETag of an object, or
    hash of the renderer."""
    license: str
    mixture: str
    split_shots: bool = False
    """Whether each shot becomes a clip of its own."""
    entry: str = ""
    """Name of the clip in the source's manifest; empty where there is no manifest."""
    t0_s: float = 0.0
    """Start of the clip in the file, in seconds."""
    t1_s: float | None = None
    """End of the clip in the file, in seconds; None is the file's end."""
    crop: tuple[float, ...] = ()
    """Left, top, right and bottom of the box to use, in units of `crop_frame`; empty is the whole
    frame."""
    crop_frame: tuple[float, ...] = ()
    """Width and height of the frame that `crop` was measured on; a width of 0 is unknown and
    follows from the file's aspect."""
    time_scale: float = 1.0
    """Playing time over filmed time: 1.25 plays the clip at four fifths of its speed."""
    caption: str = ""
    imported_scores: dict[str, float] = field(default_factory=dict)
    """Scores that the source's authors published, by names such as `koala.clarity`."""
    fault: str = ""
    """Reason why the clip cannot be used, if the listing already knows one; the clip is then
    recorded as failed and never opened."""


@dataclass(frozen=True)
class ClipRow:
    """A span of a video's frames with its scores, or with the reason why it could not be scored."""

    clip_id: str
    video: Video
    """The listed video. A row that was stored knows only the video's `STORED` fields; its span,
    crop and fault have their defaults then, because `start`, `stop`, `crop` and `failure` hold
    what became of them."""
    measures: str
    """Version of the settings under which the clip was found: `Measures.version`."""
    start: int = 0
    """First frame, counted among the frames that the file shows."""
    stop: int = 0
    """One past the last frame."""
    content_hash: str = ""
    """Hash of the whole file (BLAKE2b, 32 hexadecimal digits); empty if it was not read."""
    decoder: str = ""
    """Decoder that read the file when the clip was found: `pyav`, or `pillow` of a picture, or in
    old ledgers `decord`."""
    width: int = 0
    """Width of the crop in pixels as shown."""
    height: int = 0
    """Height of the crop in pixels as shown."""
    fps: float = 0.0
    """Frames per second at which the clip is played: the file's rate, or the clip's mean rate where
    the file's varies, over `time_scale`."""
    num_frames_header: int = 0
    """Number of frames that the source's span asks for, or that the file lists."""
    num_frames_decoded: int = 0
    """Number of those frames that could be decoded."""
    num_cuts: int = 0
    """Number of cuts inside the span."""
    motion_px: float | None = None
    """Mean optical flow in pixels, under `Measures`; None if the span is shorter than one sampling
    step."""
    failure: str = ""
    """Reason why the clip cannot be used; empty if it can."""
    crop: tuple[int, ...] = ()
    """Left, top, right and bottom in pixels; empty is the whole frame."""
    scores: dict[str, float | None] = field(default_factory=dict)
    """Values that our scorers measured, by `<scorer>.<score>`, and what the file says of itself, by
    `video.<score>`; None where one could not measure."""
    scorers: dict[str, str] = field(default_factory=dict)
    """Version of each scorer that has seen the clip, or the reason why that scorer is absent."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    """Hashes and embeddings by which duplicates are found, as bytes by scorer."""
    frame_checksums: str = ""
    """Checksums of `checked_frames`, four hexadecimal digits each, by which encoding finds out that
    it sees the frames that were scored; empty in old ledgers and for pictures."""

    def checked_frames(self) -> Sequence[int]:
        """Return the frames that have a checksum: the first, and the multiples of CHECKED_STEP."""
        after = self.start // CHECKED_STEP + 1
        return [self.start, *range(after * CHECKED_STEP, self.stop, CHECKED_STEP)]


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
    "frame_checksums",
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


def split_temporary(clips: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return the rows of temporary failures, and the others."""
    temporary = [is_temporary(failure) for failure in clips["failure"].to_pylist()]
    lasting = [not is_one for is_one in temporary]
    return clips.filter(pa.array(temporary, pa.bool_())), clips.filter(
        pa.array(lasting, pa.bool_())
    )


def failed(video: Video, measures: str, reason: str) -> ClipRow:
    """Return a row that records why a video could not be scored."""
    return ClipRow(digest(video.video_id, "failed"), video, measures, failure=reason)
