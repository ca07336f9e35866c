"""Frechet distance between two sets of feature vectors, and the files that features are kept in."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

Features = npt.NDArray[np.floating]
Doubles = npt.NDArray[np.float64]


def frechet_distance(a: Features, b: Features) -> float:
    """Return |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of (n, d) and (m, d) features.

    With rows X about their mean, S = X^T X / (n - 1), and the trace of the root is the sum of the
    singular values of X_a X_b^T / ((n - 1) (m - 1))^(1/2): nothing is squared and rooted again, so
    that rank-deficient covariances (fewer rows than features) keep their digits. Where there are
    more rows than features, the triangle R of X = QR takes the place of X.

    Its expectation over samples of one distribution is above zero, and the more so the fewer rows
    there are (Chong & Forsyth, "Effectively Unbiased FID", 2020). Raises ValueError for fewer than
    two rows.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError("the Frechet distance needs at least two samples on each side")
    (mean_a, root_a), (mean_b, root_b) = _moments(a), _moments(b)
    gap = mean_a - mean_b
    cross = np.sum(linalg.svdvals(root_a @ root_b.T))
    return float(gap @ gap + np.sum(root_a**2) + np.sum(root_b**2) - 2 * cross)


def reference_path(folder: Path, data: str, networks: str) -> Path:
    """Return where the measures of that data under those networks are kept.

    `data` is a digest of what was measured (clips, frames, size), `networks` of what measured it.
    """
    key = hashlib.sha256(f"{data}\n{networks}".encode()).hexdigest()
    return folder / f"reference-{key[:32]}.npz"


def save_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write an npz file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]  its stub mixes in flags
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _moments(features: Features) -> tuple[Doubles, Doubles]:
    """Return the mean (d,), and a root R (at most d, d) of the covariance R^T R."""
    doubles = np.asarray(features, np.float64)
    mean = doubles.mean(0)
    rows = (doubles - mean) / np.sqrt(len(doubles) - 1)
    num, width = rows.shape
    return mean, rows if num <= width else np.asarray(np.linalg.qr(rows, mode="r"))
