"""Find shots: the transitions of a film, and the spans between them."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np

from magicdistill.data_pipeline.rows import Array
from magicdistill.data_pipeline.scorers.base import Frame
from magicdistill.data_pipeline.stages.transitions import (
    Transition,
    changes,
    dissolves,
    fades,
    flashes,
    merged,
    small_gray,
)
from magicdistill.data_pipeline.stages.transnet import TransNetMeter

HISTOGRAM_SIDE, EDGE_SIDE = 256, 128
WINDOW = 8  # earlier pairs by which an outlier is recognised
SSIM_SIDE = 7
JUMP_FRAMES = 6  # pairs on either side that a jump stands out from
JUMP_SSIM, JUMP_CHANGE, MIN_JUMP = 0.8, 2.5, 4.0
LASTING, LASTING_FRAMES = 0.7, (3, 6)  # share of a change that is left in means of so many frames


class _Features(NamedTuple):
    histogram: Array
    edges: Array
    mean: Array
    variance: Array
    small: Array


class ShotMeter:
    """Scores each pair of neighbouring frames by Koala-36M's linear rule, and sees what it misses.

    The rule and its coefficients are those that Koala-36M published (Wang et al. 2024, section
    on transition detection): with `c` the correlation of the BGR histograms at 256 x 256 and `s`
    the SSIM of max(gray, Canny) at 128 x 128,

        score = 4.61480465 c + 3.75211168 s - 5.485968,

    a cut lies where score < 0, or where its 3-frame mean is below 0.75 and below
    mu - 3 max(0.2, std) of the previous 8 means with the most extreme fifth left out.

    A shaken camera changes the picture much, but not for long: such a cut counts only where the
    means of the frames before and after it differ by LASTING of the change. A cut to another view
    of the same scene keeps its histogram, and dissolves change little from frame to frame.
    Therefore a cut also lies where a pair stands out from its neighbours, with an SSIM below
    JUMP_SSIM of theirs and a change above JUMP_CHANGE times theirs, and dissolves and fades are
    looked for over many frames (`transitions.py`). Pairs inside a flash of light count as an
    ordinary pair before it.
    """

    def __init__(self) -> None:
        self._last: _Features | None = None
        self._scores: list[float] = []
        self._structures: list[float] = []
        self._small: list[Array] = []

    def update(self, frame: Frame) -> None:
        """Take the next frame."""
        features = _features(frame.rgb)
        if self._last is not None:
            colour = cv2.compareHist(self._last.histogram, features.histogram, cv2.HISTCMP_CORREL)
            structure = _similarity(self._last, features)
            self._scores.append(4.61480465 * colour + 3.75211168 * structure - 5.485968)
            self._structures.append(structure)
        self._small.append(features.small)
        self._last = features

    def cuts(self) -> list[Transition]:
        """Return the transitions between shots, in order."""
        if not self._scores:
            return []
        small = np.stack(self._small)
        lit = flashes(small)
        scores = _without(np.array(self._scores), lit)
        smooth = scores.copy()
        if len(scores) >= 3:
            smooth[1:-1] = np.convolve(scores, np.full(3, 1 / 3), mode="valid")
        structures, change = np.array(self._structures), changes(small)
        cuts = [
            Transition(pair + 1, pair + 1)
            for pair in range(len(scores))
            if ((scores[pair] < 0 or _is_outlier(smooth, pair)) and _lasts(small, change, pair))
            or (not lit[pair] and _is_jump(structures, change, pair))
        ]
        return merged([*cuts, *dissolves(small), *fades(small)])


class ShotMeters:
    """Several meters as one: its cuts are those that any of them finds."""

    def __init__(self, meters: Sequence[ShotMeter | TransNetMeter]) -> None:
        self._meters = meters

    def update(self, frame: Frame) -> None:
        """Take the next frame."""
        for meter in self._meters:
            meter.update(frame)

    def cuts(self) -> list[Transition]:
        """Return the transitions between shots, in order."""
        return merged(cut for meter in self._meters for cut in meter.cuts())


def shot_meters(name: Literal["koala", "transnetv2", "either", "none"]) -> ShotMeters:
    """Return fresh meters of that name."""
    kinds = {"koala": [ShotMeter], "transnetv2": [TransNetMeter], "none": []}
    kinds["either"] = kinds["koala"] + kinds["transnetv2"]
    return ShotMeters([kind() for kind in kinds[name]])


def spans_between(
    cuts: Sequence[Transition], num_frames: int, trim_frames: int
) -> list[tuple[int, int]]:
    """Return [start, stop) of the shots, without transitions and `trim_frames` frames beside them.

    A shot that has no frame left is part of a transition and is not returned.
    """
    starts = [0, *(cut.stop + trim_frames for cut in cuts)]
    stops = [*(cut.start - trim_frames for cut in cuts), num_frames]
    return [(start, stop) for start, stop in zip(starts, stops, strict=True) if stop > start]


def trimmed(cuts: Sequence[Transition], num_frames: int, trim_frames: int) -> tuple[int, int]:
    """Return [start, stop) of a clip without frames of neighbouring shots at either end.

    Published spans are rounded, so that up to `trim_frames` frames may be beyond a transition.
    """
    early = (cut.stop for cut in cuts if cut.start <= trim_frames and cut.stop < num_frames)
    start = max(early, default=0)
    late = [cut for cut in cuts if cut.start > start and cut.stop >= num_frames - trim_frames]
    return start, min((cut.start for cut in late), default=num_frames)


def _without(scores: Array, lit: Array) -> Array:
    """Return the scores with those of flashes replaced by the last one before."""
    usual = scores.copy()
    for pair in np.flatnonzero(lit):
        usual[pair] = usual[pair - 1] if pair else np.inf
    return usual


def _lasts(small: Array, change: Array, pair: int) -> bool:
    """Tell whether the picture stays what it has become; that of a shaken camera comes back."""
    largest = change[max(0, pair - 1) : pair + 2].max()
    for reach in LASTING_FRAMES:
        before = small[max(0, pair - reach) : max(1, pair)].mean(axis=0)
        after = small[min(pair + 2, len(small) - 1) :][:reach].mean(axis=0)
        if np.abs(after - before).mean() >= LASTING * largest:
            return True
    return False


def _is_jump(structures: Array, change: Array, pair: int) -> bool:
    near = np.r_[max(0, pair - JUMP_FRAMES) : pair, pair + 1 : pair + 1 + JUMP_FRAMES]
    near = near[near < len(change)]
    if len(near) < JUMP_FRAMES or change[pair] < MIN_JUMP:
        return False
    stands_out = change[pair] > JUMP_CHANGE * change[near].max()
    return bool(stands_out and structures[pair] < JUMP_SSIM * structures[near].min())


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
    return _Features(histogram, edges, mean, _box(edges * edges) - mean * mean, small_gray(gray))


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
