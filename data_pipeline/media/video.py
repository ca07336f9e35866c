"""Video files: write H.264 that every browser plays; read frames as a player shows them."""

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from itertools import chain
from pathlib import Path

import av
import numpy as np

from magicdistill.data_pipeline.media.frame_index import FrameIndex, VideoError, index_of
from magicdistill.data_pipeline.media.frame_reader import DecodedFrame, Picture, read
from magicdistill.data_pipeline.media.images import ImageError, image_size, read_image
from magicdistill.data_pipeline.media.sandbox import progress

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Suffixes of pictures, which are clips of one frame."""
PICTURE_FPS = 25.0
"""Frame rate of a picture, which is a clip of one frame: a convention, as FFmpeg has it."""
PYAV, PILLOW = "pyav", "pillow"
"""Names of the decoders of videos and of pictures."""
HASHED_BYTES = 1 << 24
"""Bytes that are hashed between two signs of progress."""

X264_OPTIONS = {
    "preset": "veryfast",
    "crf": "14",
    "x264-params": "mbtree=0",  # with mbtree, videos 64 pixels wide differ from run to run
}


def decoder_of(path: Path | str) -> str:
    """Return the name of the decoder that reads a file."""
    return PILLOW if is_picture(path) else PYAV


def is_picture(path: Path | str) -> bool:
    """Tell by its name whether a file is a picture, which `images.py` reads."""
    return Path(path).suffix.lower() in PICTURE_SUFFIXES


def probe(path: Path | str) -> FrameIndex:
    """Return the frames of a video or a picture and how they are shown; at most 24 are decoded.

    Raises:
        VideoError: if the file is no video, has no video stream, no frame or no frame rate.
    """
    if not is_picture(path):
        return index_of(path)
    with _explained():
        return FrameIndex(*image_size(Path(path)), PICTURE_FPS, 1, Path(path).suffix.lower()[1:])


def frames_at(path: Path | str, numbers: Iterable[int]) -> Iterator[DecodedFrame | Picture]:
    """Yield the frames of ascending numbers, holding one at a time.

    Frame k is the k-th frame that a player shows, however it is reached. Frames before the last
    key frame that leads to a wanted one are not decoded.

    Raises:
        VideoError: at the first of them that cannot be decoded.
    """
    if not is_picture(path):
        yield from read(str(path), index_of(path), numbers)
        return
    with _explained():
        picture = Picture(read_image(Path(path)))
    for number in numbers:
        if number:
            raise VideoError(f"corrupt: frame {number} cannot be decoded")
        yield picture


def frames_in(
    path: Path | str, start: int = 0, stop: int | None = None
) -> Iterator[DecodedFrame | Picture]:
    """Yield the frames [start, stop) in order; a file that ends before yields what it has.

    Raises:
        VideoError: at the first frame that cannot be decoded.
    """
    end = probe(path).num_frames
    return frames_at(path, range(start, end if stop is None else min(stop, end)))


def decode(path: Path | str, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
    """Yield the frames [start, stop) in order, uint8 RGB (h, w, 3), as `frames_in` does."""
    return (frame.rgb for frame in frames_in(path, start, stop))


def read_frames(path: Path | str, numbers: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield the frames of ascending numbers, uint8 RGB (h, w, 3), as `frames_at` does."""
    return (frame.rgb for frame in frames_at(path, numbers))


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
    found = hashlib.blake2b()
    with path.open("rb") as file:
        while part := file.read(HASHED_BYTES):
            progress()
            found.update(part)
    return found.hexdigest()[:32]


def _png_size(path: Path) -> tuple[int, int]:
    """Return width and height from the header alone: no decoder runs outside the sandbox."""
    with path.open("rb") as file:
        header = file.read(24)
    if len(header) < 24 or not header.startswith(b"\x89PNG\r\n\x1a\n"):
        raise VideoError(f"corrupt: {path.name!r} is no PNG")
    width, height = struct.unpack(">II", header[16:])
    return width, height


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except ImageError as error:
        raise VideoError(f"corrupt: {error}") from error
