"""Squared maximum mean discrepancy of features: without bias, however few clips there are.

Features are (n, r, d): r rows of width d for each of n clips. Rows of one clip are no independent
samples, so that their kernels with each other are left out, as the kernel of a row with itself is.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.floating]
Kernel = Callable[[Features, Features], Features]

NUM_SUBSETS = 100
SUBSET_SIZE = 1000
"""Published for KID (Binkowski et al. 2018): the mean over so many subsets of so many rows."""
CMMD_SIGMA = 10.0


def polynomial(x: Features, y: Features) -> Features:
    """Return (x y / d + 1)^3 of (n, d) and (m, d) rows: KID's kernel (Binkowski et al. 2018)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian(x: Features, y: Features, sigma: float = CMMD_SIGMA) -> Features:
    """Return exp(-|x - y|^2 / (2 sigma^2)): CMMD's kernel (Jayasumana et al. 2024)."""
    squares = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
    return np.exp(-squares / (2 * sigma**2))


def squared_mmd(x: Features, y: Features, kernel: Kernel) -> float:
    """Return the unbiased estimate of MMD^2 (Gretton et al. 2012, equation 3).

    Below zero about as often as above where both come from one distribution. The means within each
    side are over rows of different clips. Raises ValueError for fewer than two clips.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError("an unbiased kernel distance needs at least two clips on each side")
    x, y = (np.asarray(features, np.float64) for features in (x, y))
    cross = kernel(x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])).mean()
    return float(_within(x, kernel) + _within(y, kernel) - 2 * cross)


def subset_estimates(x: Features, y: Features, kernel: Kernel, seed: int = 0) -> Features:
    """Return the estimates of `NUM_SUBSETS` random subsets of `SUBSET_SIZE` rows a side, drawn
    without replacement; a single one of all rows where neither side has more."""
    if max(len(x) * x.shape[1], len(y) * y.shape[1]) <= SUBSET_SIZE:
        return np.array([squared_mmd(x, y, kernel)])
    rng = np.random.default_rng(seed)
    pairs = ((_subset(x, rng), _subset(y, rng)) for _ in range(NUM_SUBSETS))
    return np.array([squared_mmd(a, b, kernel) for a, b in pairs])


def _within(x: Features, kernel: Kernel) -> float:
    """Return the mean kernel of two rows of different clips."""
    num, rows, _ = x.shape
    flat = x.reshape(num * rows, -1)
    of_clips = kernel(flat, flat).reshape(num, rows, num, rows).mean((1, 3))
    return (of_clips.sum() - of_clips.trace()) / (num * (num - 1))


def _subset(x: Features, rng: np.random.Generator) -> Features:
    """Return about `SUBSET_SIZE` rows at most, spread evenly over randomly drawn clips."""
    clips = rng.permutation(len(x))[:SUBSET_SIZE]
    count = min(x.shape[1], SUBSET_SIZE // len(clips))
    rows = rng.random((len(clips), x.shape[1])).argsort(1)[:, :count]
    return x[clips[:, None], rows]
