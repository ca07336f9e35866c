"""Colour: how far a clip is from shades of grey."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from magicdistill.data_pipeline.scorers.base import Frame, RateScorer, Values, shrunk


class Colour(RateScorer):
    """Mean difference of a pixel's largest and smallest channel, from 0 (grey) to 1 (pure colours).

    That is saturation times value of HSV: saturation alone is high in the noise of dark pixels. A
    grey copy of a clip is recognised by it beside the original.
    """

    kind: Literal["colour"] = "colour"
    sampling_fps: float = 1.0
    short_side: int = 240
    """Frames are reduced to this short side in pixels."""
    MODEL: ClassVar = "chroma of HSV: largest minus smallest channel"
    SCORES: ClassVar = ("mean",)

    def look(self, frame: Frame, last: Frame | None) -> float:
        """Return the mean over a frame's pixels, in [0, 1]."""
        rgb = shrunk(frame.rgb, self.short_side)
        return float(np.mean(rgb.max(axis=2) - rgb.min(axis=2)) / 255)

    def summary(self, looks: Sequence[float], step_s: float) -> Values:
        """Return the mean over the samples."""
        return {"mean": float(np.mean(looks))}
