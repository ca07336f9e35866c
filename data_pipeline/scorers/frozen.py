"""Frozen pictures."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from magicdistill.data_pipeline.scorers.base import (
    Frame,
    RateScorer,
    Values,
    longest_run_s,
)


class Frozen(RateScorer):
    """Longest time in seconds in which the picture stands still, after FFmpeg's freezedetect.

    Two samples are the same picture where their mean absolute difference is at most half a grey
    level. An encoder refines a still picture by up to 0.4 levels between samples, measured at CRF
    14; freezedetect's own 0.26 is for streams that repeat a picture bit by bit.
    """

    kind: Literal["frozen"] = "frozen"
    sampling_fps: float = 8.0
    short_side: int = 240
    """Frames are reduced to this short side in pixels."""
    max_difference: float = 0.5
    """Mean difference in grey levels of 255 up to which two samples are one picture."""
    MODEL: ClassVar = "FFmpeg freezedetect's rule"
    SCORES: ClassVar = ("longest_s",)

    def look(self, frame: Frame, last: Frame | None) -> bool:
        """Return whether a frame equals the sample before it."""
        import cv2

        if last is None:
            return False
        gray, before = frame.gray(self.short_side), last.gray(self.short_side)
        return cv2.norm(gray, before, cv2.NORM_L1) / gray.size <= self.max_difference

    def summary(self, looks: Sequence[bool], step_s: float) -> Values:
        """Return the longest run; the first sample has no predecessor inside the clip."""
        return {"longest_s": longest_run_s(looks[1:], step_s)}
