"""Faces in what is sampled: a crop that keeps them, and whether a face stays the same person's."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from magicdistill.data_pipeline.config import Bucket
from magicdistill.data_pipeline.latents.windows import fit
from magicdistill.data_pipeline.scorers.faces import Faces, find_landmarks
from magicdistill.platform.inference.orders import Fit

FOR_CROPS, FOR_LIKENESS = (256, 0.5), (128, 0.25)
"""Short side in pixels at which faces are looked for, and confidence from 0 to 1 from which a find
is a face: a crop may move for certain faces alone; in a portrait the one face is known to be there.
"""
MARGIN = 0.35
"""Room to keep around a face, in its own sizes."""
PLACES = np.array([[0.31, 0.36], [0.69, 0.36], [0.5, 0.57], [0.35, 0.76], [0.65, 0.76]], np.float32)
"""Where eyes, nose and the corners of the mouth lie in an aligned face, as shares of its sides."""
ALIGNED_PX = 64
"""Side of an aligned face."""
CELLS = 4
"""Parts of each side of an aligned face whose patterns are counted apart."""
AROUND = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))
"""The neighbours of a pixel at (1, 1), in a circle."""
STRANGER = 0.8
"""Likeness from which on down a face is as unlike as that of another person."""
Picture = UInt8[np.ndarray, "y x 3"]


@dataclass(frozen=True)
class Face:
    """A face in a picture; all lengths are in its pixels."""

    x: float
    y: float
    """Its centre."""
    size: float
    """Square root of its area."""
    landmarks: Float[np.ndarray, "5 2"]
    """x and y of eyes, nose and the corners of the mouth."""


def find_faces(picture: Picture, short_side: int, min_confidence: float) -> list[Face] | None:
    """Return the faces that CenterFace finds, the largest first; None where it is not installed."""
    files = Faces().weights_files()
    if not files:
        return None
    height, width = picture.shape[:2]
    scale = max(1.0, short_side / min(height, width))
    seen = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    found, landmarks = find_landmarks(files[0], seen, short_side, min_confidence)
    sizes, points = np.sqrt(found[:, 3] * height * width), landmarks * (width, height)
    centres = points.mean(axis=1)
    return [Face(centres[i, 0], centres[i, 1], sizes[i], points[i]) for i in np.argsort(-sizes)]


def framed(picture: Picture, bucket: Bucket, way: Fit) -> Picture:
    """Return a picture of the bucket's size, brought to its aspect in the given way.

    `face` moves the crop from the centre no farther than the faces ask for; where there is none,
    or no CenterFace, it is `crop`.
    """
    height, width = picture.shape[:2]
    if way == "pad":
        return fit(_padded(picture, bucket), bucket)
    scale = min(height / bucket.height, width / bucket.width)
    crop_h, crop_w = round(bucket.height * scale), round(bucket.width * scale)
    if way == "crop" or (crop_h, crop_w) == (height, width):
        return fit(picture, bucket)
    faces = find_faces(picture, *FOR_CROPS) or []
    top = _start([(f.y, f.size) for f in faces], height, crop_h)
    left = _start([(f.x, f.size) for f in faces], width, crop_w)
    return fit(picture[top : top + crop_h, left : left + crop_w], bucket)


def _start(faces: list[tuple[float, float]], side: int, crop: int) -> int:
    """Return where a crop along one side begins, nearest to the centre with the faces in it.

    Where not all of them fit, it has the first ones.
    """
    low, high = 0.0, float(side - crop)
    for centre, size in faces:
        first, last = centre - (0.5 + MARGIN) * size, centre + (0.5 + MARGIN) * size
        first, last = max(first, 0.0), min(last, float(side))
        inside = max(low, last - crop), min(high, first)
        if inside[0] <= inside[1]:
            low, high = inside
    return round(min(max((side - crop) / 2, low), high))


def _padded(picture: Picture, bucket: Bucket) -> Picture:
    height, width = picture.shape[:2]
    scale = max(height / bucket.height, width / bucket.width)
    more_h = max(0, round(bucket.height * scale) - height)
    more_w = max(0, round(bucket.width * scale) - width)
    top, left = more_h // 2, more_w // 2
    return cv2.copyMakeBorder(picture, top, more_h - top, left, more_w - left, cv2.BORDER_REPLICATE)


@dataclass(frozen=True)
class Likeness:
    """How like the first frame's face those of later frames are, from 0 to 1."""

    values: list[float]
    """One a second; 0 where no face is found."""

    @property
    def lowest(self) -> float:
        """The least of them, where a face is found."""
        return min((value for value in self.values if value), default=0.0)

    @property
    def lowest_s(self) -> int:
        """When it is, in seconds from the start."""
        return 1 + self.values.index(self.lowest)

    @property
    def lost_s(self) -> int:
        """Seconds in which no face is found."""
        return self.values.count(0.0)


class LikenessMeter:
    """Compares faces by their texture: local binary patterns (Ahonen et al. 2006), aligned.

    Needs no network but the one that finds faces. A proxy: it knows light and blur from identity
    no better than it knows people.
    """

    def __init__(self) -> None:
        self.first: np.ndarray | None = None
        self.values: list[float] = []

    def add(self, frame: Picture) -> None:
        """Look at the next frame; the first is what later ones are compared with."""
        texture = _texture(frame)
        if self.first is None:
            self.first = np.zeros(0) if texture is None else texture
        elif len(self.first):
            self.values.append(0.0 if texture is None else float(self.first @ texture))

    def result(self) -> Likeness | None:
        """Return what was found; None where the first frame has no face that is found."""
        return Likeness(self.values) if self.values else None


def _texture(frame: Picture) -> Float[np.ndarray, " d"] | None:
    """Return the unit vector of a face's local binary patterns; None where there is no face."""
    faces = find_faces(frame, *FOR_LIKENESS)
    if not faces:
        return None
    points = faces[0].landmarks.astype(np.float32)
    place, _ = cv2.estimateAffinePartial2D(points, PLACES * ALIGNED_PX, method=cv2.LMEDS)
    if place is None:
        return None
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    face = cv2.warpAffine(
        grey, place, (ALIGNED_PX, ALIGNED_PX), borderMode=cv2.BORDER_REPLICATE
    ).astype(int)
    centre, last = face[1:-1, 1:-1], ALIGNED_PX - 2
    codes = sum(
        (face[y : y + last, x : x + last] >= centre).astype(int) << bit
        for bit, (y, x) in enumerate(AROUND)
    )
    cells = [
        cell for row in np.array_split(codes, CELLS) for cell in np.array_split(row, CELLS, axis=1)
    ]
    counts = np.concatenate([np.bincount(cell.ravel(), minlength=256) for cell in cells])
    return np.sqrt(counts / counts.sum())
