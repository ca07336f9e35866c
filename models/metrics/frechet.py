"""Frechet distance between two sets of feature vectors, whole or streamed."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

Features = npt.NDArray[np.floating]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FrechetStatistics:
    """Count, mean and summed outer products about the mean of rows of width d, in float64.

    Products about the mean, not about zero, lose no digits where features lie far from it.
    """

    count: int
    mean: Doubles
    """(d,)"""
    products: Doubles
    """(d, d): (count - 1) times the covariance."""

    @classmethod
    def of(cls, features: Features) -> "FrechetStatistics":
        """Return the statistics of (n, d) features, n of at least 1."""
        rows = np.asarray(features, np.float64)
        mean = rows.mean(0)
        return cls(len(rows), mean, (rows - mean).T @ (rows - mean))

    @classmethod
    def merged(cls, parts: Iterable["FrechetStatistics"]) -> "FrechetStatistics":
        """Return the statistics of all rows together (Chan, Golub, LeVeque 1979), in that order.

        Raises ValueError for no parts.
        """
        total = None
        for part in parts:
            total = part if total is None else total._with(part)
        if total is None:
            raise ValueError("there are no statistics to merge")
        return total

    @property
    def covariance(self) -> Doubles:
        """(d, d), unbiased. Raises ValueError for fewer than two rows."""
        if self.count < 2:
            raise ValueError("the Frechet distance needs at least two samples on each side")
        return self.products / (self.count - 1)

    def distance(self, other: "FrechetStatistics") -> float:
        """Return |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)).

        The trace of the root is the sum of the singular values of S_a^(1/2) S_b^(1/2): no square
        is rooted, so that rank-deficient covariances (fewer rows than features) keep their digits.
        """
        a, b = self.covariance, other.covariance
        gap = self.mean - other.mean
        cross = np.sum(linalg.svdvals(_root(a) @ _root(b)))
        return float(gap @ gap + np.trace(a) + np.trace(b) - 2 * cross)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return what `of_arrays` makes equal statistics of."""
        return {"count": np.array(self.count), "mean": self.mean, "products": self.products}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> "FrechetStatistics":
        """Return the statistics that `arrays` describe."""
        return cls(int(arrays["count"]), arrays["mean"], arrays["products"])

    def save(self, path: Path) -> None:
        """Write an npz file, whole or not at all."""
        save_arrays(path, self.arrays())

    @classmethod
    def load(cls, path: Path) -> "FrechetStatistics":
        """Read what `save` wrote."""
        with np.load(path) as stored:
            return cls.of_arrays(stored)

    def _with(self, other: "FrechetStatistics") -> "FrechetStatistics":
        count = self.count + other.count
        gap = other.mean - self.mean
        shift = np.outer(gap, gap) * (self.count * other.count / count)
        mean = self.mean + gap * (other.count / count)
        return FrechetStatistics(count, mean, self.products + other.products + shift)


def frechet_distance(a: Features, b: Features) -> float:
    """Return the distance of (n, d) and (m, d) features.

    Raises ValueError for fewer than two rows.
    """
    return FrechetStatistics.of(a).distance(FrechetStatistics.of(b))


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


def _root(covariance: Doubles) -> Doubles:
    """Return the symmetric root; eigenvalues below zero are rounding."""
    values, axes = linalg.eigh(covariance)
    return (axes * np.sqrt(values.clip(0))) @ axes.T
