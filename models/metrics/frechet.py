"""Frechet distance between two sets of feature vectors."""

import numpy as np
import numpy.typing as npt
from scipy import linalg

Features = npt.NDArray[np.floating]


def frechet_distance(a: Features, b: Features) -> float:
    """Return |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of (n, d) and (m, d) features.

    The trace of the root is the sum of the roots of the eigenvalues of S_a S_b, taken from the
    symmetric form S_a^(1/2) S_b S_a^(1/2). Raises ValueError for fewer than two rows.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError("the Frechet distance needs at least two samples on each side")
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, axes = linalg.eigh(np.atleast_2d(covariance_a))
    root = (axes * np.sqrt(values.clip(0))) @ axes.T
    cross = linalg.eigvalsh(root @ covariance_b @ root)
    gap = a.mean(0) - b.mean(0)
    traces = np.trace(np.atleast_2d(covariance_a)) + np.trace(np.atleast_2d(covariance_b))
    return float(gap @ gap + traces - 2 * np.sqrt(cross.clip(0)).sum())
