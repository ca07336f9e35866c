"""Find shots: cuts and dissolves between neighbouring frames, and the spans between them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import cv2
import numpy as np

from magicdistill.data_pipeline.rows import Array
from magicdistill.data_pipeline.stages.transnet import TransNetMeter

HISTOGRAM_SIDE, EDGE_SIDE = 256, 128
WINDOW = 8  # earlier pairs by which an outlier is recognised
SSIM_SIDE = 7


class _Features(NamedTuple):
    histogram: Array
    edges: Array
    mean: Array
    variance: Array


class ShotMeter:
    """Scores each pair of neighbouring frames by Koala-36M's linear rule.

    The rule and its coefficients are those that Koala-36M published (Wang et al. 2024, section
    on transition detection): with `c` the correlation of the BGR histograms at 256 x 256 and `s`
    the SSIM of max(gray, Canny) at 128 x 128,

        score = 4.61480465 c + 3.75211168 s - 5.485968,

    a cut lies where score < 0, or where its 3-frame mean is below 0.75 and below
    mu - 3 max(0.2, std) of the previous 8 means with the most extreme fifth left out.
    """

    def __init__(self) -> None:
        self._last: _Features | None = None
        self._scores: list[float] = []

    def update(self, frame: Array) -> None:
        """Take the next frame, uint8 RGB (h, w, 3)."""
        features = _features(frame)
        if self._last is not None:
            colour = cv2.compareHist(self._last.histogram, features.histogram, cv2.HISTCMP_CORREL)
            structure = _similarity(self._last, features)
            self._scores.append(4.61480465 * colour + 3.75211168 * structure - 5.485968)
        self._last = features

    def cuts(self) -> list[int]:
        """Return the first frames of all shots except the first shot, ascending."""
        scores = np.array(self._scores)
        smooth = scores.copy()
        if len(scores) >= 3:
            smooth[1:-1] = np.convolve(scores, np.full(3, 1 / 3), mode="valid")
        return [
            pair + 1 for pair in range(len(scores)) if scores[pair] < 0 or _is_outlier(smooth, pair)
        ]


class ShotMeters:
    """Several meters as one: its cuts are those that any of them finds."""

    def __init__(self, meters: Sequence[ShotMeter | TransNetMeter]) -> None:
        self._meters = meters

    def update(self, frame: Array) -> None:
        """Take the next frame, uint8 RGB (h, w, 3)."""
        for meter in self._meters:
            meter.update(frame)

    def cuts(self) -> list[int]:
        """Return the first frames of all shots except the first shot, ascending."""
        return sorted({cut for meter in self._meters for cut in meter.cuts()})


def shot_meters(name: Literal["koala", "transnetv2", "either", "none"]) -> ShotMeters:
    """Return fresh meters of that name."""
    kinds = {"koala": [ShotMeter], "transnetv2": [TransNetMeter], "none": []}
    kinds["either"] = kinds["koala"] + kinds["transnetv2"]
    return ShotMeters([kind() for kind in kinds[name]])


def spans_between(cuts: list[int], num_frames: int, trim_frames: int) -> list[tuple[int, int]]:
    """Return [start, stop) of the shots, without `trim_frames` frames on each side of a cut.

    A shot that has no frame left is part of a transition and is not returned.
    """
    edges = [0, *cuts, num_frames]
    spans = [
        (start + trim_frames * (start > 0), stop - trim_frames * (stop < num_frames))
        for start, stop in pairwise(edges)
    ]
    return [(start, stop) for start, stop in spans if stop > start]


def trimmed(cuts: list[int], num_frames: int, trim_frames: int) -> tuple[int, int]:
    """Return [start, stop) of a clip without frames of neighbouring shots at either end.

    Published spans are rounded, so that up to `trim_frames` frames may be beyond a cut.
    """
    start = max((cut for cut in cuts if cut <= trim_frames), default=0)
    late = (cut for cut in cuts if cut > start and cut >= num_frames - trim_frames)
    return start, min(late, default=num_frames)


def _is_outlier(smooth: Array, pair: int) -> bool:
    if pair < WINDOW or smooth[pair] >= 0.75:
        return False
    drop = WINDOW // 5
    usual = np.sort(smooth[pair - WINDOW : pair])[drop : WINDOW - drop]
    return bool(smooth[pair] < usual.mean() - 3 * max(0.2, usual.std()))


def _features(frame: Array) -> _Features:
    square = cv2.resize(frame, (HISTOGRAM_SIDE, HISTOGRAM_SIDE))
    histogram = np.concatenate(
        [cv2.calcHist([square], [channel], None, [254], [1, 255]) for channel in range(3)]
    )
    gray = cv2.resize(cv2.cvtColor(square, cv2.COLOR_RGB2GRAY), (EDGE_SIDE, EDGE_SIDE))
    edges = np.maximum(gray, cv2.Canny(gray, 100, 200)).astype(np.float32)
    mean = _box(edges)
    return _Features(histogram, edges, mean, _box(edges * edges) - mean * mean)


def _similarity(first: _Features, second: _Features) -> float:
    """Return the mean SSIM (Wang et al. 2004) over uniform 7 x 7 windows that fit the image."""
    unbiased = SSIM_SIDE**2 / (SSIM_SIDE**2 - 1)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    product = first.mean * second.mean
    covariance = _box(first.edges * second.edges) - product
    numerator = (2 * product + c1) * (2 * unbiased * covariance + c2)
    denominator = (first.mean**2 + second.mean**2 + c1) * (
        unbiased * (first.variance + second.variance) + c2
    )
    border = SSIM_SIDE // 2
    return float((numerator / denominator)[border:-border, border:-border].mean())


def _box(image: Array) -> Array:
    return cv2.blur(image, (SSIM_SIDE, SSIM_SIDE))
