"""Black frames."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from magicdistill.data_pipeline.scorers.base import (
    Frame,
    RateScorer,
    Values,
    longest_run_s,
)


class Black(RateScorer):
    """Longest run of black frames in seconds, after FFmpeg's blackdetect.

    A frame is black where 98 % of its pixels lie below 10 % of full luma.
    """

    kind: Literal["black"] = "black"
    sampling_fps: float = 8.0
    short_side: int = 240
    """Frames are reduced to this short side in pixels."""
    dark_level: int = 25
    """Luma from 0 to 255 up to which a pixel is black."""
    black_share: float = 0.98
    """Share of black pixels from which a frame is black."""
    MODEL: ClassVar = "FFmpeg blackdetect's rule"
    SCORES: ClassVar = ("longest_s", "share")

    def look(self, frame: Frame, last: Frame | None) -> bool:
        """Return whether a frame is black."""
        return bool((frame.gray(self.short_side) <= self.dark_level).mean() >= self.black_share)

    def summary(self, looks: Sequence[bool], step_s: float) -> Values:
        """Return the longest run and the share of black samples."""
        return {"longest_s": longest_run_s(looks, step_s), "share": float(np.mean(looks))}
