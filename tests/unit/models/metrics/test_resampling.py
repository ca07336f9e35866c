"""Intervals over videos, and the floor that a distribution distance of few clips stands on."""

import numpy as np
import pytest

from magicdistill.models.metrics.columns.comparisons import ProxyFrechetDistance
from magicdistill.models.metrics.columns.registry import METRICS
from magicdistill.models.metrics.frechet import frechet_distance
from magicdistill.models.metrics.resampling import HALF_ROWS, bootstrap_ratio, halves_of, interval
from magicdistill.models.metrics.results import AbsentMetric
from magicdistill.models.metrics.suite import Measured, summarise, uncertainties

FRECHET = ProxyFrechetDistance()


def normal(seed: int, count: int, width: int, rows: int = 1, shift: float = 0.0) -> np.ndarray:
    return shift + np.random.default_rng(seed).standard_normal((count, rows, width))


def test_the_floor_is_the_bias_that_a_perfect_generator_has_too() -> None:
    """In 96 dimensions 40 clips a side are far apart, and the truth is that nothing is."""
    real, perfect, far = normal(0, 80, 96), normal(1, 80, 96), normal(2, 80, 96, shift=0.5)
    floor = halves_of(real, real, FRECHET.distance, seed=0)
    assert floor is not None and not len(floor.draws)
    assert floor.disjoint > 50  # of a trace of 96
    at_halves = [halves_of(found, real, FRECHET.distance, 0) for found in (perfect, far)]
    perfectly, farther = (found.disjoint for found in at_halves if found is not None)
    assert perfectly == pytest.approx(floor.disjoint, rel=0.05)
    assert farther - floor.disjoint == pytest.approx(96 * 0.5**2, rel=0.2)


def test_the_floor_is_between_disjoint_halves_of_equal_size() -> None:
    real = np.arange(9.0).reshape(9, 1, 1)
    seen: list[tuple[set[float], set[float]]] = []

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        seen.append((set(a.flat), set(b.flat)))
        return 0.0

    halves_of(real, real, distance, seed=0)
    assert all(len(a) == len(b) == 4 and not a & b for a, b in seen)
    assert len({frozenset(a) for a, _ in seen}) > 50


@pytest.mark.parametrize("count", [1, 2, 3])
def test_too_few_clips_have_no_floor(count: int) -> None:
    real = normal(0, count, 4)
    assert halves_of(real, real, FRECHET.distance, seed=0) is None


def test_videos_of_one_input_go_into_the_same_half() -> None:
    """The interval takes all videos of an input; the floor's partner one, to be of equal size."""
    real = np.arange(6.0).reshape(6, 1, 1)
    found = np.concatenate([real, real + 100])
    sizes = []

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        own = {value % 100 for value in a.flat}
        sizes.append(len(a))
        assert own == set(b.flat) if len(a) == 6 else not own & set(b.flat)
        return 0.0

    halves_of(found, real, distance, seed=0)
    assert set(sizes) == {6, 3}


def test_frames_of_a_half_are_thinned_out_evenly() -> None:
    real = np.tile(np.arange(129.0).reshape(1, 129, 1), (100, 1, 1))
    frames: list[np.ndarray] = []

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        frames.append(a)
        return 0.0

    halves_of(real, real, distance, seed=0)
    assert frames[0].shape == (50, HALF_ROWS // 50, 1)
    assert frames[0][0, 0] == 0 and frames[0][0, -1] == 128
    assert np.ptp(np.diff(frames[0][0, :, 0])) <= 1


def test_the_interval_of_a_mean_is_its_standard_error() -> None:
    scores = np.random.default_rng(0).standard_normal(400)
    low, high = interval(bootstrap_ratio(scores, np.ones(400), seed=0))
    error = scores.std() / 20
    assert (low, high) == pytest.approx(
        (scores.mean() - 1.96 * error, scores.mean() + 1.96 * error), abs=0.15 * error
    )
    assert (low, high) == interval(bootstrap_ratio(scores, np.ones(400), seed=0))
    assert (low, high) != interval(bootstrap_ratio(scores, np.ones(400), seed=1))


def test_a_distance_moves_over_its_interval_from_sample_to_sample() -> None:
    """The width is that of distances of fresh samples; a bootstrap lies above all of them."""
    fresh = [
        frechet_distance(normal(2 * i, 60, 8, shift=0.7)[:, 0], normal(2 * i + 1, 60, 8)[:, 0])
        for i in range(300)
    ]
    found, real = normal(1000, 60, 8, shift=0.7), normal(1001, 60, 8)
    widths = []
    for seed in range(20):
        found, real = normal(1000 + 2 * seed, 60, 8, shift=0.7), normal(1001 + 2 * seed, 60, 8)
        beside = FRECHET.uncertainty(found, real, seed)
        assert beside is not None and beside.interval is not None
        low, high = beside.interval
        assert low < FRECHET.distance(found, real) < high
        widths.append(high - low)
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std(fresh), rel=0.2)
    rng = np.random.default_rng(0)
    drawn = [rng.integers(60, size=60) for _ in range(100)]
    bootstrapped = [FRECHET.distance(found[i], real[i]) for i in drawn]
    assert np.mean(bootstrapped) > FRECHET.distance(found, real) + np.std(fresh)


def measured(seed: int, count: int = 12) -> Measured:
    rng = np.random.default_rng(seed)
    names = ("temporal_flickering", "dynamic_degree_proxy", "imaging_quality")
    scores = {name: rng.random(count) + 1 for name in names}
    return Measured(scores, {"proxy_frechet_distance": normal(seed, count, 4)})


def test_every_number_has_an_interval_and_every_distance_its_floor() -> None:
    found, real = measured(0), measured(1)
    columns = ("temporal_flickering", "imaging_quality", "average", "proxy_frechet_distance")
    metrics = summarise(found, real, {}, columns)
    beside = uncertainties(found, real, metrics, columns, num_inputs=12)
    numbers = {name for name in METRICS.names() if not isinstance(metrics[name], AbsentMetric)}
    assert beside.keys() == numbers > {"average", "dynamic_degree_proxy"}
    for name in numbers:
        value, around = metrics[name], beside[name].interval
        assert isinstance(value, float) and around is not None and around[0] < value < around[1]
    assert {name for name in numbers if beside[name].halves is not None} == {
        "proxy_frechet_distance"
    }
    of_real = uncertainties(real, real, summarise(real, real, {}, columns), columns, num_inputs=12)
    floor = of_real["proxy_frechet_distance"]
    assert floor.interval is None and floor.halves is not None and floor.halves > 0


def test_videos_of_one_input_are_no_independent_ones() -> None:
    """The same video twice of each input tells nothing new."""
    one, real = measured(0), measured(1)
    twice = Measured.merged([one, one])
    found = [
        uncertainties(each, real, summarise(each, real, {}), num_inputs=12)["temporal_flickering"]
        for each in (one, twice)
    ]
    assert found[0].interval == pytest.approx(found[1].interval)


def test_measures_of_different_numbers_of_clips_are_refused() -> None:
    with pytest.raises(ValueError, match=r"different numbers of clips: .*'a': 3, 'b': 4"):
        Measured({"a": np.zeros(3)}, {"b": np.zeros((4, 1, 2))})
