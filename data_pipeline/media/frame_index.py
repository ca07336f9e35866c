"""The frames that a video file shows, in the order and at the times at which it shows them.

Everything that counts frames goes by this index: frame k is the k-th frame that a player shows.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.stream import Discard, Disposition

from magicdistill.data_pipeline.media.display import Display, DisplayError, display_of
from magicdistill.data_pipeline.media.sandbox import progress
from magicdistill.data_pipeline.rows import Array

JITTER_S, JITTER_TICKS = 0.0015, 1.5
"""Rounding of time stamps, to milliseconds or to the file's ticks, that is no variable rate."""
DEFAULT_STREAM_BONUS = 5_000_000
"""Pixels that FFmpeg adds to a stream marked as default when it looks for the best one."""
NUM_TRIED = 24
"""Frames by which time stamps are tried that may be those of decoding."""


class VideoError(Exception):
    """A file is not a readable video; the message says why."""


class Key(NamedTuple):
    """A packet from which decoding can start."""

    pts: int
    dts: int
    number: int
    """The first frame that is shown at the packet's time or later."""


@dataclass(frozen=True)
class Packets:
    """Where a file's frames are."""

    stream: int
    """Index of the stream."""
    display: Display
    """How its frames are shown."""
    pts: Array
    """Time of each frame in the stream's ticks, int64 (n,), ascending; empty where time stamps
    cannot be trusted: such frames are counted from the start of the file."""
    keys: Sequence[Key]
    """The packets from which decoding can start, in the order of the file."""
    key_of: Array
    """Number of the last key, int64 (n,), from which each frame can be decoded; -1 is the start."""


@dataclass(frozen=True)
class FrameIndex:
    """The frames of a video or a picture as they are shown."""

    width: int
    """Width in pixels as shown."""
    height: int
    """Height in pixels as shown."""
    fps: float
    """Frames per second, on average where the rate varies."""
    num_frames: int
    """Number of frames; where the file breaks off, more than can be read."""
    codec: str
    times_s: Array | None = None
    """Seconds from the first frame to each, float64 (n,), ascending; None if the rate is constant.
    """
    packets: Packets | None = None
    """Where the frames are; None for a picture."""

    @property
    def is_hdr(self) -> bool:
        """Whether brightness is coded by PQ or HLG."""
        return bool(self.packets) and self.packets.display.is_hdr

    @property
    def is_interlaced(self) -> bool:
        """Whether odd and even rows were filmed at different instants."""
        return bool(self.packets) and self.packets.display.is_interlaced

    def position(self, seconds: float) -> float:
        """Return a time, counted from the first frame, in frames."""
        if self.times_s is None:
            return seconds * self.fps
        last = len(self.times_s) - 1
        if seconds > self.times_s[last]:
            return last + (seconds - self.times_s[last]) * self.fps
        return float(np.interp(seconds, self.times_s, np.arange(last + 1)))

    def nearest(self, start: int, steps: Array, rate: float) -> Array:
        """Return the frames nearest to `steps / rate` seconds after the frame `start`, int64."""
        if self.times_s is None:
            positions = start + steps * self.fps / rate
        else:
            times = self.times_s[start] + steps / rate
            positions = np.interp(times, self.times_s, np.arange(len(self.times_s)))
        return np.round(np.round(positions, 6)).astype(int)

    def rate_within(self, start: int, stop: int) -> float:
        """Return the frames per second of [start, stop), on average where the rate varies."""
        if self.times_s is None or stop - start < 2:
            return self.fps
        length_s = float(self.times_s[stop - 1] - self.times_s[start])
        return (stop - start - 1) / length_s if length_s else self.fps

    def varies_within(self, start: int, stop: int) -> bool:
        """Tell whether the rate varies in [start, stop)."""
        if self.times_s is None or stop - start < 3:
            return False
        times = self.times_s[start:stop] - self.times_s[start]
        return not _is_even(times, self.rate_within(start, stop), 0.0)


def index_of(path: Path | str) -> FrameIndex:
    """Return the index of a video file, read from its packets; one frame is decoded.

    It is kept until the file's size or time changes.

    Raises:
        VideoError: if the file is no video, has no frame, or nobody can tell how it is shown.
    """
    with explained():
        state = Path(path).stat()
        return _index_of_state(str(path), state.st_size, state.st_mtime_ns)


@contextmanager
def open_video(
    path: str, number: int | None = None
) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    """Open a file and one of its streams, by default the one that FFmpeg takes for the best.

    The best stream has the most pixels; one that is marked as default goes before those that are
    not much larger, and a cover picture is taken only where there is nothing else.
    """
    with av.open(path, metadata_errors="replace") as container:
        streams = container.streams.video
        if not streams:
            raise VideoError("no video stream")
        stream = max(streams, key=_merit) if number is None else container.streams[number]
        assert isinstance(stream, av.VideoStream)
        for other in container.streams:
            if other.index != stream.index:
                other.discard = Discard.all
        stream.codec_context.thread_count = 1  # callers run many processes at once
        yield container, stream


@contextmanager
def explained() -> Iterator[None]:
    """Raise the errors of FFmpeg as VideoError."""
    try:
        yield
    except DisplayError as error:
        raise VideoError(str(error)) from error
    except av.FFmpegError as error:
        raise VideoError(f"corrupt: {error.strerror}") from error


class _Packet(NamedTuple):
    pts: int | None
    dts: int | None
    is_key: bool
    is_shown: bool


@lru_cache(maxsize=8)
def _index_of_state(path: str, size: int, mtime_ns: int) -> FrameIndex:
    with open_video(path) as (container, stream):
        packets, is_whole = _demuxed(container, stream)
        announced = len(stream.index_entries) if "mp4" in container.format.name else stream.frames
        missing = max(announced - len(packets), 0 if is_whole else 1)
        may_be_decoding_times = _may_be_decoding_times(packets, stream)
        rates = [float(r) for r in (stream.average_rate, stream.base_rate) if r]
        tick_s = float(stream.time_base or 0)
        codec, number = stream.codec_context.codec.canonical_name, stream.index
    with open_video(path, number) as (container, stream):
        tried = list(islice(container.decode(stream), NUM_TRIED if may_be_decoding_times else 1))
        if not tried:
            raise VideoError("corrupt: no frames")
        display = display_of(stream, tried[0])
    times = [frame.pts for frame in tried]
    is_timed = None not in (*times, *(packet.pts for packet in packets)) and times == sorted(times)  # type: ignore[type-var]
    if is_timed:
        placed = _placed(packets, tried[0].pts)
        seconds = (placed.pts - placed.pts[0]) * tick_s
        fps, is_even = _rate(seconds, rates, JITTER_TICKS * tick_s)
    else:
        placed = _Placed(np.empty(0, int), (), np.empty(0, int), sum(p.is_shown for p in packets))
        if not rates:
            raise VideoError("the file has neither time stamps nor a frame rate")
        seconds, fps, is_even = np.empty(0), rates[0], True
    return FrameIndex(
        *display.size,
        fps=fps,
        num_frames=placed.num_frames + missing,
        codec=codec,
        times_s=None if is_even else seconds,
        packets=Packets(number, display, placed.pts, placed.keys, placed.key_of),
    )


def _merit(stream: av.VideoStream) -> tuple[bool, int, int]:
    """Rank a stream as FFmpeg does where nobody chooses one."""
    bonus = DEFAULT_STREAM_BONUS * bool(stream.disposition & Disposition.default)
    is_film = not stream.disposition & Disposition.attached_pic
    return is_film, stream.width * stream.height + bonus, -stream.index


def _demuxed(container: InputContainer, stream: av.VideoStream) -> tuple[list[_Packet], bool]:
    """Return a stream's packets in the order of the file, and whether it can be read to its end.

    Edit lists mark what is decoded and not shown.
    """
    packets: list[_Packet] = []
    try:
        for packet in container.demux(stream):
            progress()
            if packet.size or packet.dts is not None:  # the last one only asks for what is left
                shown = packet.size > 0 and not packet.is_discard
                packets.append(_Packet(packet.pts, packet.dts, packet.is_keyframe, shown))
    except av.FFmpegError:
        return packets, False
    return packets, True


def _may_be_decoding_times(packets: Sequence[_Packet], stream: av.VideoStream) -> bool:
    """Tell whether frames are reordered although their times ascend, as of H.264 in AVI files."""
    if not stream.codec_context.reorder_depth:
        return False
    times = [packet.pts or 0 for packet in packets]
    return times == sorted(times)


class _Placed(NamedTuple):
    pts: Array
    keys: Sequence[Key]
    key_of: Array
    num_frames: int


def _placed(packets: Sequence[_Packet], first_pts: int | None) -> _Placed:
    """Return the shown frames in order, and from which key each can be decoded.

    A file may begin with frames that refer to others before its first key frame: they are not
    shown, and the first frame that the decoder gives tells how many there are.
    """
    pts = np.array([packet.pts for packet in packets])
    positions = np.flatnonzero([packet.is_key for packet in packets])
    first_key = positions[0] if len(positions) else 0
    shown = np.flatnonzero([packet.is_shown for packet in packets])
    if first_pts is not None:
        is_head = (shown < first_key) | (pts[shown] < pts[first_key])
        shown = shown[~is_head | (pts[shown] >= first_pts)]
    if not len(shown):
        raise VideoError("corrupt: no frames")
    order = shown[np.argsort(pts[shown], kind="stable")]
    numbers = np.searchsorted(pts[order], pts[positions])
    keys = [
        Key(time, time if dts is None else dts, number)
        for time, dts, number in zip(
            pts[positions].tolist(),
            (packet.dts for packet in packets if packet.is_key),
            numbers.tolist(),
            strict=True,
        )
    ]
    key_of = np.searchsorted(positions, order, side="right") - 1
    key_pts = np.array([*(key.pts for key in keys), np.iinfo(int).min])  # key_of -1 is the last
    while (late := key_pts[key_of] > pts[order]).any():
        key_of = key_of - late
    return _Placed(pts[order], keys, key_of, len(order))


def _rate(seconds: Array, rates: Sequence[float], jitter_s: float) -> tuple[float, bool]:
    """Return the frame rate, and whether it is constant.

    The rates of the header go before the mean of the time stamps, which are rounded.
    """
    if len(seconds) < 2 or not seconds[-1]:
        if not rates:
            raise VideoError("the file has no frame rate")
        return rates[0], True
    mean = (len(seconds) - 1) / float(seconds[-1])
    for rate in (*rates, mean):
        if _is_even(seconds, rate, jitter_s):
            return rate, True
    return mean, False


def _is_even(seconds: Array, rate: float, jitter_s: float) -> bool:
    ideal = np.arange(len(seconds)) / rate
    return bool(np.abs(seconds - ideal).max() <= max(JITTER_S, jitter_s))
