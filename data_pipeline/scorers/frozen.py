"""Frozen pictures."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from magicdistill.data_pipeline.rows import Array
from magicdistill.data_pipeline.scorers.base import (
    Frame,
    RateScorer,
    Values,
    longest_run_s,
)

SIDE, TOP_SHARE = 16, 0.01
FLATTEST = 0.05
"""Mean squared gradient that a square is taken to have at least; flat ones would seem to move."""


class Frozen(RateScorer):
    """Longest time in seconds in which the picture stands still, whatever the noise on it.

    Noise of a sensor or an encoder changes every pixel, and a head that turns slowly few of them,
    so that no limit of the mean difference separates them. The difference of two samples is
    therefore explained, in squares of 16 pixels, by a shift of the picture (Lucas & Kanade 1981)
    and a change of brightness, by least squares. Noise is hardly explained by either. The picture
    has moved where the explained part is large in at least a hundredth of the squares, in grey
    levels and beside the unexplained part.
    """

    kind: Literal["frozen"] = "frozen"
    sampling_fps: float = 8.0
    short_side: int = 240
    """Frames are reduced to this short side in pixels."""
    min_change: float = 2.0
    """Root mean square of the explained difference, in grey levels of 255, from which a square has
    changed."""
    min_ratio: float = 15.0
    """Variance ratio (F) of explained and unexplained difference from which a square has changed;
    white noise has 1 on average."""
    CODE: ClassVar = 2
    MODEL: ClassVar = "least squares of shift and brightness in squares of 16 pixels"
    SCORES: ClassVar = ("longest_s",)

    def look(self, frame: Frame, last: Frame | None) -> bool:
        """Return whether a frame equals the sample before it."""
        if last is None:
            return False
        change, ratio = _explained(last.gray(self.short_side), frame.gray(self.short_side))
        changed = (change >= self.min_change) & (ratio >= self.min_ratio)
        return bool(changed.mean() < TOP_SHARE)

    def summary(self, looks: Sequence[bool], step_s: float) -> Values:
        """Return the longest run; the first sample has no predecessor inside the clip."""
        return {"longest_s": longest_run_s(looks[1:], step_s)}


def _explained(before: Array, after: Array) -> tuple[Array, Array]:
    """Return size and variance ratio of the explained difference in each square of a picture.

    Args:
        before: 8-bit luma (h, w).
        after: the same, later.
    """
    import cv2

    one, other = before.astype(np.float32), after.astype(np.float32)
    difference, middle = other - one, (one + other) / 2  # whose noises are independent
    dx = cv2.Sobel(middle, cv2.CV_32F, 1, 0, scale=1 / 8)
    dy = cv2.Sobel(middle, cv2.CV_32F, 0, 1, scale=1 / 8)
    mean, mean_x, mean_y = _means(difference), _means(dx), _means(dy)
    xx = _means(dx * dx) - mean_x**2 + FLATTEST
    yy = _means(dy * dy) - mean_y**2 + FLATTEST
    xy = _means(dx * dy) - mean_x * mean_y
    xd = _means(dx * difference) - mean_x * mean
    yd = _means(dy * difference) - mean_y * mean
    by_shift = (yy * xd**2 - 2 * xy * xd * yd + xx * yd**2) / (xx * yy - xy**2)
    explained = by_shift + mean**2
    rest = np.maximum(_means(difference * difference) - explained, 1e-3)
    num_pixels, num_causes = SIDE * SIDE, 3
    ratio = explained / num_causes * (num_pixels - num_causes) / rest
    return np.sqrt(explained), ratio


def _means(image: Array) -> Array:
    """Return the mean of each square of SIDE pixels; a remainder at the borders is left out."""
    import cv2

    height, width = (max(1, side // SIDE) for side in image.shape)
    whole = image[: height * SIDE, : width * SIDE]
    return cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
