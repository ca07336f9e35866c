"""Text in the picture: subtitles, titles, watermarks."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from magicdistill.data_pipeline.rows import Array
from magicdistill.data_pipeline.scorers.base import (
    CountScorer,
    Frame,
    Values,
    Weights,
    given_or_packaged,
)

CORE, LINE, UNCLIP, MIN_SIDE = 0.3, 0.5, 1.6, 3
"""PaddleOCR's thresholds: of a pixel, of a line's mean, growth of its box, pixels of its core."""


class Text(CountScorer):
    """Share of the picture inside boxes of text, the mean over a few frames.

    Boxes are those of PP-OCRv4's detector, a DB network (Liao et al. 2020), with the thresholds
    that PaddleOCR uses.
    """

    kind: Literal["text"] = "text"
    long_side: int = 640
    """The frame is brought to this long side in pixels, rounded to multiples of 32."""
    weights: Weights | None = None
    """PP-OCRv4's detector as ONNX; by default the one inside `rapidocr-onnxruntime`."""
    MODEL: ClassVar = "PP-OCRv4 det, mobile (ONNX of rapidocr-onnxruntime 1.4.4), run by OpenCV"
    SCORES: ClassVar = ("area",)

    def weights_files(self) -> Sequence[Path] | None:
        """Return the given or the packaged ONNX file, or null."""
        file = "models/ch_PP-OCRv4_det_infer.onnx"
        return given_or_packaged(self.weights, self.kind, "rapidocr_onnxruntime", file)

    def look(self, frame: Frame, last: Frame | None) -> float:
        """Return the share of a frame inside boxes of text."""
        import cv2

        files = self.weights_files()
        assert files
        height, width = frame.rgb.shape[:2]
        scale = self.long_side / max(height, width)
        size = [max(32, round(side * scale / 32) * 32) for side in (width, height)]
        bgr = cv2.resize(frame.rgb, size, interpolation=cv2.INTER_AREA)[..., ::-1]
        net = _net(str(files[0]), *size)
        net.setInput(cv2.dnn.blobFromImage(bgr, 1 / 127.5, mean=(127.5,) * 3))
        return float(_boxes(net.forward()[0, 0]).mean())

    def summary(self, looks: Sequence[float], step_s: float) -> Values:
        """Return the mean over the frames."""
        return {"area": float(np.mean(looks))}


def _boxes(probability: Array) -> Array:
    """Return a mask (h, w) of the boxes around text, from the probability of its cores.

    The network is taught the cores of lines, shrunk by area over perimeter; boxes grow back.
    """
    import cv2

    core = (probability > CORE).astype(np.uint8)
    boxes = np.zeros_like(core)
    contours, _ = cv2.findContours(core, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    for contour in contours:
        centre, (width, height), angle = cv2.minAreaRect(contour)
        alone = cv2.drawContours(np.zeros_like(core), [contour], 0, 1, cv2.FILLED)
        if min(width, height) < MIN_SIDE or cv2.mean(probability, alone)[0] < LINE:
            continue
        growth = 2 * UNCLIP * width * height / (2 * (width + height))
        corners = cv2.boxPoints((centre, (width + growth, height + growth), angle))
        cv2.fillConvexPoly(boxes, corners.astype(np.int32), 1)
    return boxes


@lru_cache(maxsize=8)
def _net(weights: str, width: int, height: int) -> Any:
    """Return a network for one input size: OpenCV's do not survive another one."""
    import cv2

    return cv2.dnn.readNetFromONNX(weights)
