"""Show a stored frame as a player would: upright, with square pixels, in the right colours."""

from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from magicdistill.data_pipeline.rows import Array

PQ, HLG = 16, 18
"""Transfer characteristics of ITU-T H.273 that a screen of standard range cannot show."""
UNTAGGED = 2
"""Matrix coefficients of H.273 that say nothing."""
PROGRESSIVE = (0, 1)
"""FFmpeg's field orders of frames that were filmed at one instant: unknown, progressive."""
NEARLY_SQUARE = 0.01
"""Deviation of a pixel's aspect from 1 that nobody sees: resampling for it would cost sharpness."""
EXACT = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT
"""How pixels are converted that swscale has no direct way for: without full chroma, white
of 10 bits or of scaled frames would be 253."""
WIDEST_PIXEL = 8
"""Largest ratio of a pixel's sides that is believed."""


class DisplayError(Exception):
    """Nobody can tell how a file's frames are shown; the message says why."""


@dataclass(frozen=True)
class Display:
    """How a stream's frames are shown."""

    stored_width: int
    """Width in square pixels before frames are turned."""
    stored_height: int
    """Height in square pixels before frames are turned."""
    transposed: bool
    """Whether columns become rows; flips come afterwards."""
    flipped_x: bool
    """Whether left and right change places."""
    flipped_y: bool
    """Whether top and bottom change places."""
    is_hdr: bool
    """Whether brightness is coded by PQ or HLG, which is shown too dull as it is."""
    is_interlaced: bool
    """Whether odd and even rows were filmed at different instants."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as shown."""
        width, height = self.stored_width, self.stored_height
        return (height, width) if self.transposed else (width, height)


def display_of(stream: av.VideoStream, frame: av.VideoFrame) -> Display:
    """Return how a stream is shown, from its header and its first frame.

    Raises:
        DisplayError: if pixels are absurdly wide or frames are turned by no right angle.
    """
    width, height = frame.width, frame.height
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if aspect > WIDEST_PIXEL or aspect * WIDEST_PIXEL < 1:
        raise DisplayError(f"bad sample aspect ratio: pixels of {aspect.numerator}:"
                           f"{aspect.denominator}")  # fmt: skip
    if aspect > 1 + NEARLY_SQUARE:
        width = round(width * aspect)
    elif aspect < 1 - NEARLY_SQUARE:
        height = round(height / aspect)
    transfers = stream.codec_context.color_trc, frame.color_trc
    fields = stream.codec_context.field_order
    return Display(
        width,
        height,
        *_turns(frame),
        is_hdr=PQ in transfers or HLG in transfers,
        is_interlaced=frame.interlaced_frame or fields not in PROGRESSIVE,
    )


class Screen:
    """Converts a stream's frames to RGB as shown, with one converter for all of them."""

    def __init__(self, display: Display) -> None:
        self._display = display
        # One for each size, as to set one up for another takes longer than a frame.
        self._reformatters: dict[tuple[int, int, str], VideoReformatter] = {}

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as shown."""
        return self._display.size

    def show(self, frame: av.VideoFrame) -> Array:
        """Return a decoded frame as uint8 RGB (h, w, 3).

        Frames without a matrix are BT.709 in high definition and BT.601 else, as players have it.
        """
        display = self._display
        size = display.stored_width, display.stored_height
        is_plain = size == (frame.width, frame.height) and frame.format.components[0].bits <= 8
        rgb = self._reformatter(*size, "rgb24").reformat(
            frame,
            *size,
            format="rgb24",
            src_colorspace=Colorspace.ITU709 if _is_untagged_hd(frame) else None,
            interpolation=None if is_plain else EXACT,
            threads=1,
        )
        return self._upright(rgb.to_ndarray())

    def luma(self, frame: av.VideoFrame, width: int, height: int) -> Array:
        """Return the luma of a decoded frame, full range, uint8 (height, width), as shown.

        It is the file's own, reduced without a detour by RGB, which costs five times as much.
        """
        size = (height, width) if self._display.transposed else (width, height)
        gray = self._reformatter(*size, "gray").reformat(
            frame, *size, format="gray", interpolation=Interpolation.AREA, threads=1
        )
        return self._upright(gray.to_ndarray())

    def _reformatter(self, width: int, height: int, pixels: str) -> VideoReformatter:
        return self._reformatters.setdefault((width, height, pixels), VideoReformatter())

    def _upright(self, image: Array) -> Array:
        """Return an image (h, w, ...) as it is shown."""
        display = self._display
        if display.transposed:
            image = image.swapaxes(0, 1)
        image = image[:: -1 if display.flipped_y else 1, :: -1 if display.flipped_x else 1]
        return np.ascontiguousarray(image)


def _is_untagged_hd(frame: av.VideoFrame) -> bool:
    is_hd = frame.height > 576 or frame.width >= 1280
    return is_hd and frame.colorspace == UNTAGGED and not frame.format.is_rgb


def _turns(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Return whether a frame is transposed, then flipped in x and in y, by its display matrix.

    The matrix (ISO/IEC 14496-12, 8.3.2) takes a stored point (x, y) to (a x + c y, b x + d y).
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(data), np.int32)[:5])
    straight, crossed = max(abs(a), abs(d)), max(abs(b), abs(c))
    if min(straight, crossed) > 0.02 * max(straight, crossed):
        raise DisplayError("bad rotation: frames are turned by no right angle")
    if straight >= crossed:
        return False, a < 0, d < 0
    return True, c < 0, b < 0
