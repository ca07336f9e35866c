"""Exposure: how bright a clip is, and how much of it is clipped."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from magicdistill.data_pipeline.scorers.base import Frame, RateScorer, Values


class Exposure(RateScorer):
    """Mean 8-bit luma, and the share of pixels at 0-4 or 251-255."""

    kind: Literal["exposure"] = "exposure"
    short_side: int = 240
    """Frames are reduced to this short side in pixels."""
    MODEL: ClassVar = "luma of the file, full range"
    SCORES: ClassVar = ("luma", "clipped_share")

    def look(self, frame: Frame, last: Frame | None) -> tuple[float, float]:
        """Return luma and clipped share of a frame."""
        gray = frame.gray(self.short_side)
        return float(gray.mean()), float(((gray < 5) | (gray > 250)).mean())

    def summary(self, looks: Sequence[tuple[float, float]], step_s: float) -> Values:
        """Return the means over the samples."""
        luma, clipped = np.mean(looks, axis=0)
        return {"luma": float(luma), "clipped_share": float(clipped)}
