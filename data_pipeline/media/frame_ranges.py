"""Convert a clip's span in seconds and its crop to frames and pixels of the file."""

from dataclasses import dataclass

from magicdistill.data_pipeline.media.frame_index import FrameIndex, VideoError
from magicdistill.data_pipeline.rows import Array, Video


@dataclass(frozen=True)
class FrameRange:
    """A range of a file's frames, and the box of pixels that is used of each."""

    start: int
    """Index of the first frame."""
    stop: int | None
    """Index one past the last frame; None is the file's end."""
    crop: tuple[int, ...]
    """Left, top, right and bottom in pixels; empty is the whole frame."""
    width: int
    """Width of the crop in pixels."""
    height: int
    """Height of the crop in pixels."""
    num_frames: int
    """Number of frames in the span, or in the file."""


def frame_range_of(video: Video, index: FrameIndex) -> FrameRange:
    """Return the frames and the crop that a source's row names; seconds go by time stamps.

    Raises:
        VideoError: if the span starts after the file's end or the crop lies outside the frame.
    """
    start = round(index.position(video.t0_s))
    stop = None if video.t1_s is None else max(start + 1, round(index.position(video.t1_s)))
    if start >= index.num_frames:
        raise VideoError(f"bad span: starts at frame {start} of {index.num_frames}")
    num_frames = (stop or index.num_frames) - start
    if not video.crop:
        return FrameRange(start, stop, (), index.width, index.height, num_frames)
    crop = _pixels(video, index)
    left, top, right, bottom = crop
    return FrameRange(start, stop, crop, right - left, bottom - top, num_frames)


def cropped(frame: Array, crop: tuple[int, ...]) -> Array:
    """Return the box of a frame (h, w, 3); an empty crop returns the frame itself."""
    if not crop:
        return frame
    left, top, right, bottom = crop
    return frame[top:bottom, left:right]


def _pixels(video: Video, index: FrameIndex) -> tuple[int, int, int, int]:
    """Return the crop in pixels as shown, clipped to its frame.

    Raises:
        VideoError: if less than 2 x 2 pixels are left.
    """
    reference_width, reference_height = video.crop_frame
    scale_y = index.height / reference_height
    scale_x = index.width / reference_width if reference_width else scale_y
    left, top, right, bottom = video.crop
    left, right = (min(max(round(x * scale_x), 0), index.width) for x in (left, right))
    top, bottom = (min(max(round(y * scale_y), 0), index.height) for y in (top, bottom))
    if right - left < 2 or bottom - top < 2:
        raise VideoError(f"bad crop: {video.crop} lies outside {index.width}x{index.height}")
    return left, top, right, bottom
