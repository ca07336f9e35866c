"""Videos with the oddities of real files; every frame shows its own number."""

import sys
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.stream import Disposition

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


X264 = {"x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=3:b-adapt=0"}
OPEN_X264 = {"x264-params": X264["x264-params"] + ":open-gop=1"}
OPEN_X265 = {"x265-params": OPEN_X264["x264-params"] + ":log-level=none"}
REFRESHED = {"x264-params": "intra-refresh=1:keyint=12:bframes=0"}
MPEG4 = {"bf": "2", "g": "12", "b": "4000000"}
VP9 = {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "realtime"}
AV1 = {"preset": "12", "svtav1-params": "keyint=12:lp=1"}
NOT_SHIFTED = {"avoid_negative_ts": "disabled"}
IN_PIECES = {"movflags": "frag_keyframe+delay_moov"}


def vfr(number: int) -> int:
    """Return the time of a frame in 1/30 s: 40 frames at 30 a second, then the others at 5."""
    return number if number < 40 else 40 + 6 * (number - 40)


def tagged(**tags: Any) -> Callable[[Any], None]:
    """Return what sets tags of a stream's codec."""

    def prepare(stream: Any) -> None:
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)

    return prepare


Kind = tuple[str, range, Callable[[Path], Path]]


def odd(file: str, shown: range, codec: str = "libx264", **how: Any) -> Kind:
    """Return the name of a file, the numbers of the frames that it shows, and what writes it."""
    return file, shown, partial(encode, codec=codec, **how)


KINDS: dict[str, Kind] = {
    "plain": odd("a.mp4", range(60), options=X264),
    "cut by an edit list": odd(
        "a.mp4", range(18, 60), options=X264, first_packet_s=0.39, shift=-18
    ),
    "first key frame discarded": odd("a.mp4", range(1, 60), options=X264, shift=-1),
    "open GOP": odd("a.mp4", range(60), options=OPEN_X264),
    "open GOP in Matroska": odd("a.mkv", range(60), options=OPEN_X264),
    "open GOP of HEVC": odd("a.mp4", range(60), "libx265", options=OPEN_X265),
    "open GOP of HEVC in Matroska": odd("a.mkv", range(60), "libx265", options=OPEN_X265),
    "cut before leading pictures": odd(
        "a.mkv", range(12, 60), "libx265", options=OPEN_X265, first_packet_s=0.39
    ),
    "refreshed bit by bit": odd("a.mp4", range(60), options=REFRESHED, picture=moving),
    "MPEG-4 in AVI with B-frames": odd("a.avi", range(60), "mpeg4", options=MPEG4),
    "H.264 in AVI, times of decoding": odd("a.avi", range(60), options=X264),
    "negative times in fragments": odd(
        "a.mp4", range(60), options=X264, shift=-10, muxer=IN_PIECES
    ),
    "negative times in Matroska": odd(
        "a.mkv", range(60), options=X264, shift=-10, muxer=NOT_SHIFTED
    ),
    "VP9": odd("a.webm", range(60), "libvpx-vp9", options=VP9),
    "AV1": odd("a.webm", range(60), "libsvtav1", options=AV1),
    "variable rate": odd("a.mp4", range(60), options=X264, pts=vfr),
    "variable rate in Matroska": odd("a.mkv", range(60), options=X264, pts=vfr),
    "MPEG-2 in Matroska": odd("a.mkv", range(60), "mpeg2video", options=MPEG4),
    "JPEG in AVI": odd("a.avi", range(60), "mjpeg", pix_fmt="yuvj420p"),
    "10 bits, 4:2:2": odd("a.mov", range(60), "prores_ks", pix_fmt="yuv422p10le"),
    "12 bits, 4:4:4": odd("a.mkv", range(60), "ffv1", pix_fmt="yuv444p12le"),
    "alpha": odd("a.webm", range(60), "libvpx-vp9", options=VP9, pix_fmt="yuva420p"),
    "RGB": odd("a.mkv", range(60), "libx264rgb", options=X264, pix_fmt="rgb24"),
}


def turned(path: Path, degrees: int, is_mirrored: bool) -> Path:
    """Write frames that the display matrix turns upright, mirrored after they are turned."""

    def stored(number: int) -> np.ndarray:
        shown = numbered(number)[:, :: -1 if is_mirrored else 1]
        return np.ascontiguousarray(np.rot90(shown, -degrees // 90))

    size = (WIDTH, HEIGHT) if degrees % 180 == 0 else (HEIGHT, WIDTH)
    turn = partial(av.VideoStream.set_display_rotation, degrees=degrees, hflip=is_mirrored)
    return encode(path, 5, size=size, picture=stored, prepare=turn)


def three_streams(path: Path) -> Path:
    """Write a cover picture, a small film of numbers from 32 on, and a large one from 0 on."""
    with av.open(str(path), "w") as output:
        sizes = {"mjpeg": (512, 256), "libx264": (64, 32), "libx264rgb": (128, 64)}
        streams = []
        for codec, (width, height) in sizes.items():
            stream = output.add_stream(codec.removesuffix("rgb"), rate=30)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height = width, height
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.disposition = Disposition.default
            streams.append(stream)
        streams[0].disposition = Disposition.attached_pic
        for number in range(12):
            for stream in streams[number > 0 :]:
                shown = numbered(
                    number + 32 * (stream is not streams[2]), stream.width, stream.height
                )
                output.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        for stream in streams:
            output.mux(stream.encode())
    return path


def write_all(folder: Path) -> None:
    """Write a file of every kind into a folder, named for it."""
    for kind, (file, _, make) in KINDS.items():
        make(folder / f"{kind}{Path(file).suffix}")
    for degrees in (90, 180, 270):
        turned(folder / f"turned by {degrees}.mp4", degrees, False)
        turned(folder / f"turned by {degrees}, mirrored.mp4", degrees, True)
    for wide, high in ((4, 3), (1, 2), (1001, 1000)):
        prepare = tagged(sample_aspect_ratio=Fraction(wide, high))
        encode(folder / f"pixels of {wide} to {high}.mp4", prepare=prepare)
    for name, transfer in (("PQ", 16), ("HLG", 18)):
        prepare = tagged(color_trc=transfer, colorspace=9, color_primaries=9)
        encode(folder / f"{name}.mp4", prepare=prepare)
    encode(folder / "interlaced.mp4", options={"x264-params": "tff=1"})
    encode(folder / "full range.mp4", pix_fmt="yuvj420p")
    three_streams(folder / "two films and a cover.mp4")


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
