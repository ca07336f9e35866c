"""Videos with the oddities of real files; every frame shows its own number."""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

BITS, SIDE = 8, 16
WIDTH, HEIGHT = BITS * SIDE, 64
BLACK, WHITE = 30, 220
MOST = 64
"""One past the largest number that a picture shows."""
UPRIGHT = 0b11000001
"""What the lower half shows: no picture that is turned or mirrored shows it with such a number."""


def numbered(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Return a picture, uint8 RGB (h, w, 3): eight bars show the number's bits, largest first.

    White is one. The lower half shows UPRIGHT in the same way.

    Raises:
        ValueError: if the number is not below MOST.
    """
    if not 0 <= number < MOST:
        raise ValueError(f"{number} is not below {MOST}")
    halves = [
        np.where([value >> bit & 1 for bit in reversed(range(BITS))], WHITE, BLACK)
        for value in (number, UPRIGHT)
    ]
    bars = np.array(halves, np.uint8).repeat(width // BITS, 1).repeat(height // 2, 0)
    return bars[:, :, None].repeat(3, axis=2)


def moving(number: int) -> np.ndarray:
    """Return `numbered` in front of soft blobs that slide, which are coded by their motion."""
    blobs = np.random.default_rng(0).integers(0, 255, (16, 40, 3), dtype=np.uint8)
    texture = cv2.resize(blobs, (WIDTH + 4 * MOST, HEIGHT + MOST), interpolation=cv2.INTER_CUBIC)
    shown = texture[number : number + HEIGHT, 3 * number : 3 * number + WIDTH]
    return cv2.addWeighted(numbered(number), 0.6, shown, 0.4, 0)


def number_of(frame: np.ndarray) -> int:
    """Return the number that a picture shows; -1 if it is not upright."""
    height, width = frame.shape[:2]
    number, mark = (
        int(
            "".join(
                "01"[int(half[:, i * width // BITS : (i + 1) * width // BITS].mean() > 125)]
                for i in range(BITS)
            ),
            2,
        )
        for half in (frame[: height // 2], frame[height // 2 :])
    )
    return number if mark == UPRIGHT and number < MOST else -1


def numbers_of(frames: Iterator[np.ndarray] | Sequence[np.ndarray]) -> list[int]:
    """Return the numbers that pictures show."""
    return [number_of(frame) for frame in frames]


def encode(
    path: Path,
    num_frames: int = 60,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    *,
    pts: Callable[[int], int] = lambda i: i,
    tick: Fraction = Fraction(1, 30),
    size: tuple[int, int] = (WIDTH, HEIGHT),
    prepare: Callable[[Any], None] = lambda stream: None,
    picture: Callable[[int], np.ndarray] | None = None,
    muxer: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    shift: int = 0,
    first_packet_s: float = 0.0,
) -> Path:
    """Write a video of numbered frames.

    Args:
        path: target file.
        num_frames: number of frames.
        codec: encoder.
        options: its options.
        pts: time of each frame in ticks.
        tick: length of a tick in seconds.
        size: width and height as stored.
        prepare: called with the stream before the first frame.
        picture: makes the stored picture of each frame; `numbered` by default.
        muxer: options of the container.
        pix_fmt: format of the stored pixels.
        shift: ticks that are added to all time stamps of packets.
        first_packet_s: packets before this time are left out, up to a key frame.
    """
    make = picture or (lambda number: numbered(number, *size))
    with av.open(str(path), "w", options=muxer or {}) as output:
        stream = output.add_stream(codec, rate=1 / tick, options=options or {})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = tick
        stream.codec_context.thread_count = 1
        prepare(stream)
        packets: list[av.Packet] = []
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(make(number), format="rgb24")
            frame.pts, frame.time_base = pts(number), tick
            packets += stream.encode(frame)
        packets += stream.encode()
        begun = not first_packet_s
        for packet in packets:
            assert packet.pts is not None and packet.dts is not None and packet.time_base
            begun = begun or (
                packet.is_keyframe and packet.pts * packet.time_base >= first_packet_s
            )
            if begun:
                packet.pts += int(shift * tick / packet.time_base)
                packet.dts += int(shift * tick / packet.time_base)
                output.mux(packet)
    return path
