"""The Frechet distance against SciPy and closed forms; statistics that stream, merge and last."""

from pathlib import Path

import numpy as np
import pytest
from scipy import linalg

from magicdistill.models.metrics.frechet import frechet_distance, reference_path


def features(seed: int, count: int, width: int = 8) -> np.ndarray:
    """Return correlated rows that lie away from zero."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((width, width))
    return rng.standard_normal((count, width)) @ mixing + 5 * rng.standard_normal(width)


def scipys(a: np.ndarray, b: np.ndarray) -> float:
    """Return the distance by the matrix root of SciPy, as the published code takes it."""
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.real(np.asarray(linalg.sqrtm(covariance_a @ covariance_b)))
    gap = a.mean(0) - b.mean(0)
    return float(gap @ gap + np.trace(covariance_a + covariance_b - 2 * root))


@pytest.mark.parametrize("width", [1, 2, 8, 64])
def test_the_distance_is_scipys(width: int) -> None:
    a, b = features(0, 500, width), features(1, 300, width)
    if width == 1:
        spread = a.std(ddof=1) - b.std(ddof=1)
        expected = float((a.mean() - b.mean()) ** 2 + spread**2)
    else:
        expected = scipys(a, b)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def with_moments(mean: list[float], root: np.ndarray) -> np.ndarray:
    """Return rows of exactly this mean and of the covariance root^T root."""
    width = len(mean)
    rows = np.sqrt((2 * width - 1) / 2) * np.concatenate([np.eye(width), -np.eye(width)])
    return rows @ root + mean


def test_diagonal_gaussians_have_their_closed_form() -> None:
    a = with_moments([1.0, 2.0, 3.0], np.diag([1.0, 2.0, 3.0]))
    b = with_moments([1.0, 0.0, 3.0], np.diag([2.0, 2.0, 0.0]))
    expected = 2**2 + (1 - 2) ** 2 + (2 - 2) ** 2 + (3 - 0) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected)


def test_gaussians_that_do_not_share_axes_have_their_closed_form() -> None:
    """A rotation by 90 degrees swaps the variances, by 45 mixes them: roots of 2 x 2 matrices."""
    update = np.array([[1.0, -1.0], [1.0, 1.0]]) / np.sqrt(2)
    a = with_moments([0.0, 0.0], np.diag([3.0, 1.0]))
    b = with_moments([0.0, 0.0], np.diag([2.0, 1.0]) @ update.T)
    product = np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)
    trace_of_root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    assert frechet_distance(a, b) == pytest.approx(10 + 5 - 2 * trace_of_root)


def test_fewer_rows_than_features_keep_their_digits() -> None:
    base = features(0, 20, 64)
    assert frechet_distance(base, base) == pytest.approx(0, abs=1e-9 * np.trace(np.cov(base.T)))
    assert frechet_distance(base, base + 3) == pytest.approx(64 * 9, rel=1e-10)
    assert frechet_distance(base, 2 * base - base.mean(0)) == pytest.approx(
        np.trace(np.cov(base.T)), rel=1e-10
    )


def test_one_sample_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="two samples"):
        frechet_distance(features(0, 1), features(1, 9))


def test_features_far_from_zero_lose_no_digits() -> None:
    a, b = features(0, 100), features(1, 100)
    assert frechet_distance(a + 1e6, b + 1e6) == pytest.approx(frechet_distance(a, b), rel=1e-7)


def test_single_precision_features_are_summed_in_double() -> None:
    a, b = (features(seed, 100).astype(np.float32) for seed in (0, 1))
    expected = frechet_distance(a.astype(float), b.astype(float))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_a_reference_is_named_by_its_data_and_its_networks(tmp_path: Path) -> None:
    path = reference_path(tmp_path, "data", "networks")
    assert path == reference_path(tmp_path, "data", "networks")
    others = [("data2", "networks"), ("data", "networks2"), ("datan", "etworks")]
    assert path not in [reference_path(tmp_path, *other) for other in others]
