"""Blur: a proxy for clarity."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from magicdistill.data_pipeline.rows import Array
from magicdistill.data_pipeline.scorers.base import Frame, RateScorer, Values

TAPS = 9


class Blur(RateScorer):
    """Perceptual blur of Crete et al. 2007, "The blur effect": 0 is sharp, 1 is blurred.

    Neighbouring pixels differ less after a strong low-pass; the sharper the picture, the more is
    lost. A proxy: learnt clarity scores also see noise and compression.
    """

    kind: Literal["blur"] = "blur"
    short_side: int = 540
    """Frames are reduced to this short side in pixels."""
    MODEL: ClassVar = "Crete et al. 2007, 9 taps"
    SCORES: ClassVar = ("effect",)
    PROXY_FOR: ClassVar = "clarity"

    def look(self, frame: Frame, last: Frame | None) -> float:
        """Return the blur of a frame, the worse of both directions."""
        gray = frame.gray(self.short_side).astype(np.float32)
        return max(_blur_along(gray), _blur_along(np.ascontiguousarray(gray.T)))

    def summary(self, looks: Sequence[float], step_s: float) -> Values:
        """Return the mean over the samples."""
        return {"effect": float(np.mean(looks))}


def _blur_along(gray: Array) -> float:
    """Return the blur along the rows' direction, in [0, 1]; a flat picture is blurred."""
    import cv2

    smooth = cv2.blur(gray, (1, TAPS))
    sharp_steps, smooth_steps = (cv2.absdiff(i[1:], i[:-1]) for i in (gray, smooth))
    total = float(sharp_steps.sum())
    lost = float(np.maximum(0, cv2.subtract(sharp_steps, smooth_steps)).sum())
    return (total - lost) / total if total else 1.0
