"""Measure the motion of a clip by optical flow."""

import cv2
import numpy as np

from magicdistill.data_pipeline.rows import Array


class MotionMeter:
    """Mean optical flow (Farneback 2003) in pixels between frames sampled at a fixed rate.

    Flow depends on image size and time step, so both are fixed: frames are resized to a short side
    of `short_side` pixels and sampled `sampling_fps` times a second.
    """

    def __init__(self, fps: float, short_side: int, sampling_fps: float) -> None:
        self._step = max(1, round(fps / sampling_fps))
        self._short_side = short_side
        self._last: Array | None = None
        self._index = -1
        self._lengths_px: list[float] = []

    def update(self, frame: Array) -> None:
        """Take the next frame, uint8 RGB (h, w, 3)."""
        self._index += 1
        if self._index % self._step:
            return
        gray = cv2.cvtColor(self._resized(frame), cv2.COLOR_RGB2GRAY)
        if self._last is not None:
            flow = cv2.calcOpticalFlowFarneback(
                self._last, gray, np.empty(0), 0.5, 3, 15, 3, 5, 1.2, 0
            )
            self._lengths_px.append(float(np.linalg.norm(flow, axis=-1).mean()))
        self._last = gray

    def mean_px(self, start: int, stop: int) -> float | None:
        """Return the mean flow in pixels over the sampled pairs inside frames [start, stop).

        None if there is no such pair.
        """
        inside = [
            length
            for pair, length in enumerate(self._lengths_px)
            if pair * self._step >= start and (pair + 1) * self._step < stop
        ]
        return float(np.mean(inside)) if inside else None

    def _resized(self, frame: Array) -> Array:
        height, width = frame.shape[:2]
        scale = self._short_side / min(height, width)
        size = (round(width * scale), round(height * scale))
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        return cv2.resize(frame, size, interpolation=method)
