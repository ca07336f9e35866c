"""Read frames of a video by number: in sequence or anywhere, a number means the same frame."""

import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import av
import numpy as np

from magicdistill.data_pipeline.media.display import Screen
from magicdistill.data_pipeline.media.frame_index import (
    FrameIndex,
    Packets,
    VideoError,
    explained,
    open_video,
)
from magicdistill.data_pipeline.media.frame_ranges import cropped
from magicdistill.data_pipeline.media.sandbox import progress
from magicdistill.data_pipeline.rows import Array
from magicdistill.data_pipeline.scorers.base import Frame, shrunk, shrunk_size

WORTH_A_SEEK = 8
"""Frames that are decoded in vain rather than looked for a key frame."""
CHECKSUM_ROWS = 16
"""One row of pixels in so many is in a frame's checksum."""


@dataclass(frozen=True)
class Picture:
    """The one frame of a picture, as a `DecodedFrame`."""

    rgb: Array
    number: int = 0
    checksum: str = ""

    def for_scorers(self, crop: tuple[int, ...]) -> Frame:
        """Return the box of the frame that scorers see; an empty crop is all of it."""
        return Frame(cropped(self.rgb, crop))


class DecodedFrame:
    """A frame with its number; what is not asked for is not converted."""

    def __init__(self, number: int, frame: av.VideoFrame, screen: Screen) -> None:
        self.number = number
        """Place among the frames that the file shows, from 0."""
        self._frame, self._screen = frame, screen

    @property
    def rgb(self) -> Array:
        """The frame as shown, uint8 RGB (h, w, 3), converted anew for each call."""
        return self._screen.show(self._frame)

    def luma(self, short_side: int, crop: tuple[int, ...] = ()) -> Array:
        """Return 8-bit luma (h, w) with at most that short side, of the box `crop` if given."""
        whole = self._screen.size
        if not crop:
            return self._screen.luma(self._frame, *shrunk_size(*whole, short_side))
        return shrunk(cropped(self._screen.luma(self._frame, *whole), crop), short_side)

    def for_scorers(self, crop: tuple[int, ...]) -> Frame:
        """Return the box of the frame that scorers see; an empty crop is all of it."""
        return _LazyFrame(self, crop)

    @property
    def checksum(self) -> str:
        """Four hexadecimal digits by which the frame is known again.

        It is taken of brightness as the file has it: converting to RGB rounds differently on
        different processors.
        """
        plane = self._frame.planes[0]
        num_bytes = row_bytes(self._frame.format, self._frame.width)
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        seen = rows[: plane.height : CHECKSUM_ROWS, :num_bytes].tobytes()
        return f"{zlib.crc32(seen) & 0xFFFF:04x}"


def row_bytes(pixels: av.VideoFormat, width: int) -> int:
    """Return the size of a row of the first plane: of brightness, or of whole packed pixels."""
    if pixels.is_planar:
        return width * -(-pixels.components[0].bits // 8)
    return -(-width * pixels.padded_bits_per_pixel // 8)


class _LazyFrame(Frame):
    """The box of a decoded frame; what no scorer asks for is not converted."""

    def __init__(self, decoded: DecodedFrame, crop: tuple[int, ...]) -> None:
        self._decoded, self._crop, self._derived = decoded, crop, {}

    @property
    def rgb(self) -> Array:
        return self._once("rgb", lambda: cropped(self._decoded.rgb, self._crop))

    def _luma(self, short_side: int) -> Array:
        return self._decoded.luma(short_side, self._crop)


def read(path: str, index: FrameIndex, numbers: Iterable[int]) -> Iterator[DecodedFrame]:
    """Yield the frames of ascending numbers, which may repeat, holding one at a time.

    Raises:
        VideoError: at the first of them that cannot be decoded.
    """
    assert index.packets
    screen = Screen(index.packets.display)
    last: DecodedFrame | None = None
    with explained(), _File(path, index.packets) as file:
        run: Iterator[tuple[int, av.VideoFrame]] = iter(())
        for number in numbers:
            if last is None or _is_far(index.packets, last.number, number):
                run = file.frames_from(number)
            while last is None or last.number < number:
                found = next(run, None)
                if found is None:
                    raise VideoError(f"corrupt: frame {number} cannot be decoded")
                last = DecodedFrame(*found, screen)
            yield last


def _is_far(packets: Packets, last: int, number: int) -> bool:
    """Tell whether a key frame lies so far on the way to a frame that it saves decoding."""
    if number >= len(packets.pts):
        return False
    key = int(packets.key_of[number])
    return key > int(packets.key_of[last]) and packets.keys[key].number > last + WORTH_A_SEEK


class _File:
    """An open file from which frames are decoded."""

    def __init__(self, path: str, packets: Packets) -> None:
        self._path, self._packets = path, packets
        self._open = ExitStack()

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def frames_from(self, first: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield numbers and frames from one frame on, without a gap.

        Where the best key frame does not lead to it, an earlier one is taken, at last the start.

        Raises:
            VideoError: if a frame between others cannot be decoded.
        """
        run, expected = None, first
        for key in self._starts(first):
            run = self._decoded(key)
            try:
                found = next((pair for pair in run if pair[0] >= first), None)
            except av.FFmpegError:
                if key < 0:
                    raise
                continue
            if found and found[0] == first:
                yield found
                break
        else:
            raise VideoError(f"corrupt: frame {first} cannot be decoded")
        for number, frame in run:
            expected += 1
            if number != expected:
                raise VideoError(f"corrupt: frame {expected} cannot be decoded")
            yield number, frame

    def _starts(self, first: int) -> list[int]:
        """Return the keys to try in turn; -1 is the start of the file."""
        if first >= len(self._packets.pts):
            return [-1]
        key = int(self._packets.key_of[first])
        return list(dict.fromkeys((key, max(key - 1, -1), -1)))

    def _decoded(self, key: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield numbers, ascending, and frames from a key on; none if it gives no picture itself.

        Streams that are refreshed bit by bit mark packets as keys whose pictures refer to others:
        decoders leave some of them out, and those that follow are not exact.
        """
        pts, number = self._packets.pts, -1
        unproven: int | None = None
        for order, packet in enumerate(self._demuxed(key)):
            if key >= 0 and not order and not packet.is_discard:
                unproven = packet.pts
            for frame in packet.decode():
                progress()
                assert isinstance(frame, av.VideoFrame)
                if unproven is not None and frame.pts is not None and frame.pts >= unproven:
                    if frame.pts > unproven:
                        return
                    unproven = None
                if not len(pts) or (number + 1 < len(pts) and frame.pts == pts[number + 1]):
                    number += 1
                else:  # the first frame after a key, or one that is out of place
                    place = int(np.searchsorted(pts, frame.pts or 0))
                    if frame.pts is None or place == len(pts) or pts[place] != frame.pts:
                        continue
                    if place <= number:
                        raise VideoError("corrupt: time stamps are not in order")
                    number = place
                yield number, frame

    def _demuxed(self, key: int) -> Iterator[av.Packet]:
        """Yield packets from a key on, or from an earlier one."""
        self._open.close()
        container, stream = self._open.enter_context(open_video(self._path, self._packets.stream))
        if key < 0:
            yield from container.demux(stream)
            return
        wanted = self._packets.keys[key]
        # Some containers seek by the time of showing, others by that of decoding.
        earlier = self._packets.keys[max(key - 1, 0)]
        for target in (wanted.pts, wanted.dts, earlier.dts):
            container.seek(target, stream=stream)
            coming = container.demux(stream)
            packet = next(coming, None)
            if packet and packet.pts is not None and packet.pts <= wanted.pts:
                yield packet
                yield from coming
                return
