"""Measure the motion of a clip by optical flow."""

from typing import Any

import cv2
import numpy as np

from magicdistill.data_pipeline.rows import Array
from magicdistill.data_pipeline.scorers.base import Frame

FAST_PX = 4.0
"""Displacement between two samples from which a pixel is followed through the frames between them:
Farneback's windows of 15 pixels on four scales find shorter ones and lose longer ones."""
STEADY = 0.7
"""Least ratio of displacement to path of a followed pixel. Noise wanders: over the six short steps
of half a second its ratio is about 0.3."""
TRACKING_FPS, TRACKING_SIDE = 12.0, 120
"""Frames per second and short side in pixels at which pixels are followed."""


class MotionMeter:
    """Mean displacement of the picture in pixels between frames sampled at a fixed rate.

    Displacement depends on image size and time step, so both are fixed: lengths are those at a
    short side of `short_side` pixels, and of 1 / `sampling_fps` seconds.

    Optical flow between two samples (Farneback 2003) measures what moves slowly and finds a few
    pixels only where the truth is twenty or a hundred. The frames between the samples are
    therefore compared as well, by DIS flow (Kroeger et al. 2016) on small pictures, and its vectors
    are added up at each place. Where the sum is long and its parts agree, it counts instead. Sums
    are taken at fixed places, not along paths, so that what leaves the picture counts, and an
    object counts by its area times its way.
    """

    def __init__(self, fps: float, short_side: int, sampling_fps: float) -> None:
        self._step = max(1, round(fps / sampling_fps))
        self._stride = max(1, round(fps / TRACKING_FPS))
        self._per_unit = fps / sampling_fps / self._step
        self._short_side = short_side
        self._tracker = _Tracker(min(short_side, TRACKING_SIDE))
        self._last: Array | None = None
        self._index = -1
        self._lengths_px: list[float] = []

    def update(self, frame: Frame) -> None:
        """Take the next frame."""
        self._index += 1
        since = self._index % self._step
        if since % self._stride:
            return
        gray = _resized(frame.gray(self._short_side), self._short_side)
        self._tracker.update(gray)
        if since:
            return
        if self._last is not None:
            slow = cv2.calcOpticalFlowFarneback(
                self._last, gray, np.empty(0), 0.5, 3, 15, 3, 5, 1.2, 0
            )
            lengths = self._tracker.corrected(_lengths(slow))
            self._lengths_px.append(float(lengths.mean()) * self._per_unit)
        self._last = gray
        self._tracker.restart()

    def mean_px(self, start: int, stop: int) -> float | None:
        """Return the mean displacement in pixels over the sampled pairs in frames [start, stop).

        None if there is no such pair.
        """
        inside = [
            length
            for pair, length in enumerate(self._lengths_px)
            if pair * self._step >= start and (pair + 1) * self._step < stop
        ]
        return float(np.mean(inside)) if inside else None


class _Tracker:
    """Adds up the flow of successive small frames at each place of the picture."""

    def __init__(self, short_side: int) -> None:
        self._short_side = short_side
        self._flow: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._last: Array | None = None
        self._sum: Array | float = 0.0
        self._path: Array | float = 0.0

    def update(self, frame: Array) -> None:
        """Take the luma of the next frame, uint8 (h, w)."""
        gray = _resized(frame, self._short_side)
        if self._last is not None:
            flow = self._flow.calc(self._last, gray, None)
            self._sum = self._sum + flow
            self._path = self._path + _lengths(flow)
        self._last = gray

    def corrected(self, slow: Array) -> Array:
        """Return displacements in pixels (h, w) with those of fast and steady places replaced."""
        scale = min(slow.shape) / self._short_side
        size = slow.shape[::-1]
        fast = cv2.resize(_lengths(np.asarray(self._sum)) * scale, size)
        path = cv2.resize(np.asarray(self._path) * scale, size)
        return np.where((fast > FAST_PX) & (fast > STEADY * path), fast, slow)

    def restart(self) -> None:
        """Begin a new sum at the last frame."""
        self._sum = self._path = 0.0


def _lengths(flow: Array) -> Array:
    """Return the lengths (h, w) of vectors (h, w, 2)."""
    return cv2.magnitude(*cv2.split(flow))


def _resized(image: Array, short_side: int) -> Array:
    """Return the image with that short side, smaller or larger."""
    height, width = image.shape
    scale = short_side / min(height, width)
    if scale == 1:
        return image
    size = (round(width * scale), round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
