"""The rows of the pipeline: videos that sources list, and the clips found in them."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy.typing as npt
import pyarrow as pa

Array = npt.NDArray[Any]


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
    """Local file; a rendered source writes it on first use."""
    fingerprint: str
    """Changes whenever the content may have changed."""
    license: str
    mixture: str
    split_shots: bool


@dataclass(frozen=True)
class ClipRow:
    """A span of a video with its scores, or the reason why it could not be scored."""

    clip_id: str
    video_id: str
    source_id: str
    uri: str
    path: str
    fingerprint: str
    license: str
    mixture: str
    measures: str
    """Version of the settings under which the scores were taken."""
    start: int = 0
    """First frame, at the video's own rate."""
    stop: int = 0
    """One past the last frame."""
    content_hash: str = ""
    decoder: str = ""
    width: int = 0
    height: int = 0
    fps: float = 0.0
    num_frames_header: int = 0
    num_frames_decoded: int = 0
    num_cuts: int = 0
    motion_px: float | None = None
    """Mean optical flow; null where the span is shorter than one sampling step."""
    failure: str = ""


_ARROW_TYPES = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}


def _schema(kind: type[Video] | type[ClipRow]) -> pa.Schema:
    fields = kind.__dataclass_fields__.values()
    return pa.schema([(f.name, _ARROW_TYPES.get(f.type, pa.float64())) for f in fields])  # type: ignore[arg-type]


VIDEO_SCHEMA = _schema(Video)
CLIP_SCHEMA = _schema(ClipRow)


def videos_to_table(videos: Sequence[Video]) -> pa.Table:
    """Return videos as an Arrow table."""
    return pa.Table.from_pylist([asdict(video) for video in videos], schema=VIDEO_SCHEMA)


def clips_to_table(clips: Sequence[ClipRow]) -> pa.Table:
    """Return clips as an Arrow table."""
    return pa.Table.from_pylist([asdict(clip) for clip in clips], schema=CLIP_SCHEMA)


def videos_from_table(table: pa.Table) -> list[Video]:
    """Return the videos of a table made by `videos_to_table`."""
    return [Video(**record) for record in table.to_pylist()]


def clips_from_table(table: pa.Table) -> list[ClipRow]:
    """Return the clips of a table made by `clips_to_table`."""
    return [ClipRow(**record) for record in table.to_pylist()]


def failed(video: Video, measures: str, reason: str) -> ClipRow:
    """Return the row of a video that could not be scored."""
    return ClipRow(
        clip_id=digest(video.video_id, "failed"),
        video_id=video.video_id,
        source_id=video.source_id,
        uri=video.uri,
        path=video.path,
        fingerprint=video.fingerprint,
        license=video.license,
        mixture=video.mixture,
        measures=measures,
        failure=reason,
    )
