"""Video files: write H.264 that every browser plays; read frames with two decoders."""

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path

import av
import decord
import numpy as np

from magicdistill.data_pipeline.media.images import ImageError, image_size, read_image

decord.logging.set_level(decord.logging.QUIET)
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Suffixes of pictures, which are clips of one frame."""
PICTURE_FPS = 25.0
"""Frame rate of a picture, which is a clip of one frame: a convention, as FFmpeg has it."""
DECORD, PYAV, PILLOW = "decord", "pyav", "pillow"
DECODERS = (DECORD, PYAV)
"""In order of preference: decord is about seven times faster on small clips."""

X264_OPTIONS = {
    "preset": "veryfast",
    "crf": "14",
    "x264-params": "mbtree=0",  # with mbtree, videos 64 pixels wide differ from run to run
}


class VideoError(Exception):
    """A file is not a readable video; the message says why."""


@dataclass(frozen=True)
class Header:
    """What the header of a video file says; frames are not decoded to check it."""

    width: int
    height: int
    fps: float
    num_frames: int
    """Number of frames; 0 if the header gives neither it nor a duration."""
    codec: str


def decoders_of(path: Path) -> tuple[str, ...]:
    """Return the decoders that may read a file, in order of preference."""
    return (PILLOW,) if is_picture(path) else DECODERS


def is_picture(path: Path | str) -> bool:
    """Tell by its name whether a file is a picture, which `images.py` reads."""
    return Path(path).suffix.lower() in PICTURE_SUFFIXES


def probe(path: Path | str) -> Header:
    """Read the header of a video or a picture without decoding frames.

    Raises:
        VideoError: if the file is no video or has no video stream.
    """
    if is_picture(path):
        with _explained():
            return Header(*image_size(Path(path)), PICTURE_FPS, 1, Path(path).suffix.lower()[1:])
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError("no video stream")
            stream = container.streams.video[0]
            rate = float(stream.average_rate or stream.base_rate or 0)
            if not stream.width or not stream.height or rate <= 0:
                raise VideoError("the header has no size or no frame rate")
            length_s = float((stream.duration or 0) * (stream.time_base or 0))
            num_frames = stream.frames or round(length_s * rate)
            codec = stream.codec_context.name
            return Header(stream.width, stream.height, rate, num_frames, codec)
    except av.FFmpegError as error:
        raise VideoError(f"corrupt: {error.strerror}") from error


def decode(
    path: Path | str, decoder: str = DECORD, start: int = 0, stop: int | None = None
) -> Iterator[np.ndarray]:
    """Yield the frames [start, stop) in order, uint8 RGB (h, w, 3), holding one at a time.

    Frames before the last key frame at or before `start` are not decoded. A file that ends
    before `stop` yields what it has.

    Raises:
        VideoError: at the first frame that cannot be decoded.
    """
    if is_picture(path):
        return islice(_decode_picture(path), start, stop)
    if decoder == DECORD:
        return _decode_with_decord(path, start, stop)
    return islice(_decode_with_pyav(path, start), None if stop is None else stop - start)


def read_frames(path: Path | str, indices: Sequence[int], decoder: str) -> Iterator[np.ndarray]:
    """Yield the frames at ascending indices, uint8 RGB (h, w, 3).

    Raises:
        VideoError: if one of them cannot be decoded.
    """
    if decoder == DECORD and not is_picture(path):
        try:
            reader = decord.VideoReader(str(path), num_threads=1)
            for index in indices:
                yield _checked(reader[index].asnumpy())
        except (RuntimeError, IndexError, decord.DECORDError) as error:
            raise VideoError(f"corrupt: {_first_line(error)}") from error
        return
    wanted = iter(indices)
    target = next(wanted, None)
    start = target or 0
    for index, frame in enumerate(decode(path, decoder, start), start):
        while target == index:
            yield frame
            target = next(wanted, None)
        if target is None:
            return
    raise VideoError(f"corrupt: frame {target} cannot be decoded")


def hash_content(path: Path) -> str:
    """Return a hash of the whole file, cached until the file's size or time changes."""
    state = path.stat()
    return _hash_of_state(path, state.st_size, state.st_mtime_ns)


def write_mp4(path: Path, frames: np.ndarray, fps: int | float) -> None:
    """Write frames as an H.264 (yuv420p) MP4, atomically.

    Args:
        path: target file; its folder must exist. An existing file is replaced.
        frames: uint8 RGB, shape (f, h, w, 3), h and w even.
        fps: frames per second.

    Raises:
        ValueError: if the frames have another shape or dtype, or there are none.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"expected uint8 (f, h, w, 3), got {frames.dtype} {frames.shape}")
    write_frames(path, frames, fps)


def write_frames(
    path: Path, frames: Iterable[np.ndarray], fps: int | float, *, comment: str = ""
) -> None:
    """Write frames, uint8 RGB (h, w, 3), one by one as the iterable yields them.

    `comment` is stored in the file's metadata, for `read_comment`.

    Raises:
        ValueError: if there are no frames.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    options = {"movflags": "faststart"}
    coming = iter(frames)
    first = next(coming, None)
    if first is None:
        raise ValueError("a video has frames, and there are none")
    try:
        with av.open(str(temporary), "w", format="mp4", options=options) as container:
            if comment:
                container.metadata["comment"] = comment
            stream = container.add_stream(
                "libx264", rate=Fraction(fps).limit_denominator(1001), options=X264_OPTIONS
            )
            stream.height, stream.width = first.shape[:2]
            stream.pix_fmt = "yuv420p"
            stream.codec_context.thread_count = 1  # clips are tiny; callers run many at once
            for frame in chain([first], coming):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_comment(path: Path) -> str:
    """Return the comment in a video's metadata; empty if there is none.

    Raises:
        VideoError: if the file is no video.
    """
    try:
        with av.open(str(path)) as container:
            return container.metadata.get("comment", "")
    except av.FFmpegError as error:
        raise VideoError(f"corrupt: {error.strerror}") from error


def pack_pictures(folder: Path, fps: float, path: Path) -> None:
    """Copy a folder's PNG files, in the order of their names, undecoded into a QuickTime file.

    Raises:
        VideoError: if there is no PNG file, one is no PNG, or their sizes differ.
    """
    pictures = sorted(folder.glob("*.png"))
    if not pictures:
        raise VideoError("missing file: the folder has no PNG")
    rate, size = Fraction(fps).limit_denominator(1001), _png_size(pictures[0])
    with av.open(str(path), "w", format="mov", options={"fflags": "bitexact"}) as output:
        stream = output.add_stream("png", rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "rgb24"
        for index, picture in enumerate(pictures):
            if _png_size(picture) != size:
                raise VideoError(f"corrupt: {picture.name!r} has another size")
            packet = av.Packet(picture.read_bytes())
            packet.stream, packet.time_base = stream, 1 / rate
            packet.pts = packet.dts = index
            packet.is_keyframe = True
            output.mux(packet)


@lru_cache(maxsize=16)
def _hash_of_state(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def _png_size(path: Path) -> tuple[int, int]:
    """Return width and height from the header alone: no decoder runs outside the sandbox."""
    with path.open("rb") as file:
        header = file.read(24)
    if len(header) < 24 or not header.startswith(b"\x89PNG\r\n\x1a\n"):
        raise VideoError(f"corrupt: {path.name!r} is no PNG")
    width, height = struct.unpack(">II", header[16:])
    return width, height


def _decode_with_decord(path: Path | str, start: int, stop: int | None) -> Iterator[np.ndarray]:
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        end = len(reader) if stop is None else min(stop, len(reader))
        if start and start < end:
            reader.seek_accurate(start)
        for _ in range(start, end):
            yield _checked(reader.next().asnumpy())
    except (RuntimeError, StopIteration, decord.DECORDError) as error:
        raise VideoError(f"corrupt: {_first_line(error)}") from error


def _decode_with_pyav(path: Path | str, start: int) -> Iterator[np.ndarray]:
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_count = 1
            rate, tick = stream.average_rate or stream.base_rate, stream.time_base
            assert rate and tick
            first = stream.start_time or 0
            if start:
                container.seek(first + int(start / rate / tick), stream=stream)
            for position, frame in enumerate(container.decode(stream)):
                if start:
                    position = round(((frame.pts or 0) - first) * tick * rate)
                if position >= start:
                    yield frame.to_ndarray(format="rgb24")
    except (av.FFmpegError, IndexError) as error:
        raise VideoError(f"corrupt: {_first_line(error)}") from error


def _decode_picture(path: Path | str) -> Iterator[np.ndarray]:
    with _explained():
        yield read_image(Path(path))


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except ImageError as error:
        raise VideoError(f"corrupt: {error}") from error


def _checked(frame: np.ndarray) -> np.ndarray:
    if frame.shape[-1] != 3:  # dmlc/decord#336: it reads padding of narrow rows as channels
        raise VideoError(f"decord misreads rows of {frame.shape[1]} pixels")
    return frame


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
