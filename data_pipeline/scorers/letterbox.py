"""Black bars at the borders."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from magicdistill.data_pipeline.rows import Array
from magicdistill.data_pipeline.scorers.base import Frame, RateScorer, Values

Profiles = tuple[Array, Array]


class Letterbox(RateScorer):
    """Share of the picture under black bars, and the height or width of each bar.

    Rows and columns belong to a bar while their mean luma stays at or below FFmpeg cropdetect's
    24 in every sample, and if the picture then begins with a step: a dark backdrop fades instead
    and is no bar.
    """

    kind: Literal["letterbox"] = "letterbox"
    sampling_fps: float = 1.0
    short_side: int = 540
    """Frames are reduced to this short side in pixels."""
    dark_level: float = 24.0
    """Mean luma from 0 to 255 up to which a row or column belongs to a bar."""
    min_step: float = 12.0
    """Grey levels between a bar and the picture three lines further, in some sample."""
    CODE: ClassVar = 1
    MODEL: ClassVar = "FFmpeg cropdetect's rule, with a step at the edge"
    SCORES: ClassVar = ("share", "top", "bottom", "left", "right")

    def look(self, frame: Frame, last: Frame | None) -> Profiles:
        """Return the mean luma of each row and of each column."""
        gray = frame.gray(self.short_side)
        return gray.mean(axis=1), gray.mean(axis=0)

    def summary(self, looks: Sequence[Profiles], step_s: float) -> Values:
        """Return the bars' shares of height and width, and of the area together."""
        rows, columns = (np.max(profiles, axis=0) for profiles in zip(*looks, strict=True))
        top, bottom = self._bar(rows), self._bar(rows[::-1])
        left, right = self._bar(columns), self._bar(columns[::-1])
        share = 1 - max(0.0, 1 - top - bottom) * max(0.0, 1 - left - right)
        return {"share": share, "top": top, "bottom": bottom, "left": left, "right": right}

    def _bar(self, profile: Array) -> float:
        bright = np.flatnonzero(profile > self.dark_level)
        width = int(bright[0]) if len(bright) else 0
        inside = profile[width : width + 3]
        if not width or inside.max() - profile[max(0, width - 2)] < self.min_step:
            return 0.0
        return width / len(profile)
