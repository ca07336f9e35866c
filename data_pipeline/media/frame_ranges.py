"""What part of a file a clip is: frames and pixels instead of seconds and fractions."""

from dataclasses import dataclass

from magicdistill.data_pipeline.media.video import Header, VideoError
from magicdistill.data_pipeline.rows import Array, Video


@dataclass(frozen=True)
class FrameRange:
    """A span of a file's frames and a box of their pixels."""

    start: int
    """First frame."""
    stop: int | None
    """One past the last frame; None is the file's end."""
    crop: tuple[int, ...]
    """Left, top, right and bottom in pixels; empty is the whole frame."""
    width: int
    """Of the crop."""
    height: int
    num_frames: int
    """Frames that the source's span spells, or that the container announces; 0 if neither does."""


def frame_range_of(video: Video, header: Header) -> FrameRange:
    """Return the part of a file that a source's row means.

    Raises:
        VideoError: if the span starts after the file's end or the crop lies outside the frame.
    """
    start = round(video.t0_s * header.fps)
    stop = None if video.t1_s is None else max(start + 1, round(video.t1_s * header.fps))
    if start and header.num_frames and start >= header.num_frames:
        raise VideoError(f"bad span: starts at frame {start} of {header.num_frames}")
    num_frames = (stop or header.num_frames or start) - start
    if not video.crop:
        return FrameRange(start, stop, (), header.width, header.height, num_frames)
    crop = _pixels(video, header)
    left, top, right, bottom = crop
    return FrameRange(start, stop, crop, right - left, bottom - top, num_frames)


def cropped(frame: Array, crop: tuple[int, ...]) -> Array:
    """Return the box of a frame (h, w, 3); the frame itself where there is no box."""
    if not crop:
        return frame
    left, top, right, bottom = crop
    return frame[top:bottom, left:right]


def _pixels(video: Video, header: Header) -> tuple[int, int, int, int]:
    """Scale the crop from the frame that it was measured on to the file's, and clip it there."""
    reference_width, reference_height = video.crop_frame
    scale_y = header.height / reference_height
    scale_x = header.width / reference_width if reference_width else scale_y
    left, top, right, bottom = video.crop
    left, right = (min(max(round(x * scale_x), 0), header.width) for x in (left, right))
    top, bottom = (min(max(round(y * scale_y), 0), header.height) for y in (top, bottom))
    if right - left < 2 or bottom - top < 2:
        raise VideoError(f"bad crop: {video.crop} lies outside {header.width}x{header.height}")
    return left, top, right, bottom
