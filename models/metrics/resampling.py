"""How far a metric would move with other videos, and how much of a distance is its bias.

Clips are resampled by their input, so that all videos of one first frame stay together. Means are
bootstrapped (Efron 1979). A distribution distance is not: a sample with replacement repeats clips,
which have no spread between them, so that the bootstrap's distances lie above the distance that
they are to vary about (the bias of Chong & Forsyth 2020 at the smaller number of different clips).
Halves drawn without replacement repeat none (Politis & Romano 1994, "Large sample confidence
regions based on subsamples"). They are the delete-d jackknife of d = n / 2 (Shao & Wu 1989), for
which the factor (n - d) / d of the variance is 1: the spread of the halves' distances about their
own mean is that of the whole's. The bias of a half, which is the larger, is in that mean and goes
out with it; the bias of the whole stays in the number, and the floor shows it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Distance = Callable[[Array, Array], float]

NUM_BOOTSTRAPS = 2000
NUM_HALVES = 100
HALF_ROWS = 512
"""Rows of a half at most: frames of its clips are thinned out evenly to so many."""
PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Halves:
    """What random halves of the inputs say about a distance."""

    draws: Array
    """Distances (k,) between a half of the generated clips and the real clips of the same half."""
    disjoint: float
    """Mean distance between a half of the generated clips and the other half of the real ones. Of
    real clips against real ones it is the floor: what no generator can be expected to be below."""


def bootstrap_ratio(over: Array, under: Array, seed: int) -> Array:
    """Return sums of `over` (n,) over sums of `under` (n,), in `NUM_BOOTSTRAPS` resamples.

    Equal seeds and n draw the same inputs. NaN where a resample's `under` sums to zero.
    """
    num = len(over)
    drawn = np.random.default_rng(seed).integers(num, size=(NUM_BOOTSTRAPS, num))
    with np.errstate(invalid="ignore", divide="ignore"):
        return over[drawn].sum(1) / under[drawn].sum(1)


def halves_of(found: Array, real: Array, distance: Distance, seed: int) -> Halves | None:
    """Return the distances of random halves; None for fewer than four real clips.

    `found` (s n, r, d) are s videos of each of the n inputs, one sample after the other, and
    `real` (n, q, d) the real clips in the same order. `disjoint` has as many clips on both sides,
    one video of each input, so that generators and real clips are compared at equal n.
    """
    num = len(real)
    if num < 4:
        return None
    rng, size, is_real = np.random.default_rng(seed), num // 2, found is real
    found, real = _thinned(found, size), _thinned(real, size)
    samples = found.reshape(-1, num, *found.shape[1:])
    draws, disjoint = [], []
    for _ in range(NUM_HALVES):
        order = rng.permutation(num)
        half, other = order[:size], order[size : 2 * size]
        if not is_real:
            draws.append(distance(np.concatenate(samples[:, half]), real[half]))
        disjoint.append(distance(samples[0, half], real[other]))
    return Halves(np.array(draws), float(np.mean(disjoint)))


def interval(draws: Array) -> tuple[float, float]:
    """Return the 95 % interval of draws, without those that are NaN."""
    low, high = np.nanpercentile(draws, PERCENTILES)
    return float(low), float(high)


def thinned_rows(rows: int, clips: int) -> int:
    """Return how many of a clip's rows a half of so many clips takes."""
    return min(rows, max(1, HALF_ROWS // clips))


def _thinned(features: Array, clips: int) -> Array:
    rows = features.shape[1]
    count = thinned_rows(rows, clips)
    if count == rows:
        return features
    return features[:, np.linspace(0, rows - 1, count).round().astype(int)]
