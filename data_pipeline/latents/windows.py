"""Windows of a clip: spans of the bucket's length, cropped and resized to the bucket's size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from magicdistill.data_pipeline.config import Bucket, Decoder
from magicdistill.data_pipeline.media.frame_ranges import cropped
from magicdistill.data_pipeline.media.sandbox import Outcome, Sandbox
from magicdistill.data_pipeline.media.video import VideoError, frames_at, hash_content, probe
from magicdistill.data_pipeline.rows import CHECKED_STEP, UNREACHABLE, Array, ClipRow
from magicdistill.data_pipeline.sources.fetching import Scratch, is_rendered

DEFAULT_DECODER = Decoder()


@dataclass(frozen=True)
class Window:
    """A span of a clip in resampled frames, possibly mirrored."""

    start: int
    """First frame, counted from the clip's start at the bucket's frame rate."""
    flipped: bool
    """Whether the window is mirrored left to right."""


def num_resampled(clip: ClipRow, bucket: Bucket) -> int:
    """Return the number of frames of a clip at the bucket's frame rate."""
    return int((clip.stop - clip.start - 1) * bucket.fps / clip.fps + 1e-6) + 1


def window_starts(clip: ClipRow, bucket: Bucket, windows_per_clip: int) -> list[int]:
    """Return the distinct starts of evenly spaced windows, in resampled frames.

    Raises:
        ValueError: if the clip is shorter than the bucket.
    """
    room = num_resampled(clip, bucket) - bucket.num_frames
    if room < 0:
        raise ValueError(f"clip {clip.clip_id} is shorter than a window of {bucket}")
    if windows_per_clip == 1:
        return [room // 2]
    return sorted({round(start) for start in np.linspace(0, room, windows_per_clip)})


def windows_of(clip: ClipRow, bucket: Bucket, windows_per_clip: int, flip: bool) -> list[Window]:
    """Return the windows of a clip, each followed by its mirror image if `flip`."""
    mirrors = (False, True) if flip else (False,)
    return [
        Window(start, flipped)
        for start in window_starts(clip, bucket, windows_per_clip)
        for flipped in mirrors
    ]


def decode_windows(
    clip: ClipRow, path: Path, bucket: Bucket, windows_per_clip: int, num_frames: int | None = None
) -> Array:
    """Return the clip's windows, uint8 RGB (n, f, h, w, 3), not mirrored.

    Frames are the nearest in time, cropped about the centre to the bucket's aspect and resized.

    Args:
        clip: the clip; if it has a crop, only that part of the frames is used.
        path: its local file.
        bucket: the shape of a window.
        windows_per_clip: the largest number of windows.
        num_frames: the first frames of each window that are wanted; None is all of them.

    Raises:
        VideoError: if a frame cannot be decoded, the file's content is not the scored one, or its
            frames are not. Rendered clips are exempt: rendered again, they look alike although the
            bytes of the file may differ.
    """
    is_kept = not is_rendered(clip.video.uri)
    if clip.content_hash and is_kept and hash_content(path) != clip.content_hash:
        raise VideoError(f"{UNREACHABLE}: the file was replaced since it was scored")
    starts = window_starts(clip, bucket, windows_per_clip)
    spans = np.array(starts)[:, None] + np.arange(num_frames or bucket.num_frames)
    wanted = np.unique(spans)
    rate = bucket.fps * clip.video.time_scale
    numbers = np.minimum(probe(path).nearest(clip.start, wanted, rate), clip.stop - 1)
    checksums = _checksums(clip, numbers[np.searchsorted(wanted, spans)]) if is_kept else {}
    frames: dict[int, Array] = {}
    for frame in frames_at(path, sorted({*numbers.tolist(), *checksums})):
        if frame.checksum != checksums.get(frame.number, frame.checksum):
            raise VideoError(f"frame {frame.number} is not the one that was scored")
        if frame.number in numbers:
            frames[frame.number] = fit(cropped(frame.rgb, clip.crop), bucket)
    return np.stack([frames[number] for number in numbers])[np.searchsorted(wanted, spans)]


def _checksums(clip: ClipRow, windows: Array) -> dict[int, str]:
    """Return the checksums to compare when windows of frames, int (n, f), are read, by frame.

    Of each window they are those inside it, and the last one before it.
    """
    found = clip.frame_checksums
    checksums = (found[place : place + 4] for place in range(0, len(found), 4))
    return {
        number: checksum
        for number, checksum in zip(clip.checked_frames(), checksums, strict=False)
        for first, last in zip(windows.min(1), windows.max(1), strict=True)
        if first - CHECKED_STEP < number <= last
    }


def fetch_windows(
    sandbox: Sandbox,
    scratch: Scratch,
    clip: ClipRow,
    bucket: Bucket,
    windows_per_clip: int,
    num_frames: int | None = None,
) -> Outcome:
    """Fetch the clip's file and decode its windows, or the first frames of each, in a child
    process; failures are returned."""
    try:
        path = scratch.fetch(clip.video.uri, clip.video.path)
    except VideoError as error:
        return Outcome(failure=f"VideoError: {error}")
    return sandbox.call(decode_windows, clip, path, bucket, windows_per_clip, num_frames)


def read_windows(
    clips: Sequence[ClipRow],
    bucket: Bucket,
    windows_per_clip: int,
    decoder: Decoder = DEFAULT_DECODER,
) -> Iterator[Array]:
    """Yield each clip's windows, uint8 RGB (n, f, h, w, 3), decoded in a child process.

    Raises:
        VideoError: if a clip cannot be read, naming it.
    """
    with Sandbox(decoder.timeout_s, decoder.num_attempts) as sandbox, Scratch() as scratch:
        for clip in clips:
            outcome = fetch_windows(sandbox, scratch, clip, bucket, windows_per_clip)
            if outcome.failure:
                raise VideoError(f"{clip.video.source_id}: {outcome.failure}")
            yield outcome.value


def fit(frame: Array, bucket: Bucket) -> Array:
    """Crop a frame (h, w, 3) about its centre to the bucket's aspect and resize it."""
    height, width = frame.shape[:2]
    scale = min(height / bucket.height, width / bucket.width)
    crop_h, crop_w = round(bucket.height * scale), round(bucket.width * scale)
    top, left = (height - crop_h) // 2, (width - crop_w) // 2
    cropped = frame[top : top + crop_h, left : left + crop_w]
    if cropped.shape[:2] == (bucket.height, bucket.width):
        return cropped
    method = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    return cv2.resize(cropped, (bucket.width, bucket.height), interpolation=method)
