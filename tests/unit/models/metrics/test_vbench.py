"""VBench's dimensions on hand-made videos whose scores are known."""

import math

import pytest
import torch
from torch import Tensor

from magicdistill.models.metrics import vbench
from magicdistill.models.metrics.columns.registry import dimensions
from magicdistill.models.metrics.results import AbsentMetric, Metric, average

SIDE = 64
SLOPE = 2.5
"""Levels a pixel of the ramp, whose shift in levels therefore is its motion in pixels."""


def video(*levels: float) -> Tensor:
    """Return plain frames of these levels, (t, 3, 6, 10)."""
    return torch.tensor(levels).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 6, 10)


def ramp(shifts: Tensor, columns: int = SIDE) -> Tensor:
    """Return a ramp of which the first columns move left by so many levels a frame."""
    still = (SLOPE * torch.arange(SIDE)).floor().view(1, 1, 1, -1).expand(len(shifts), 3, SIDE, -1)
    moved = still.clone()
    moved[..., :columns] += shifts.cumsum(0).view(-1, 1, 1, 1)
    return moved.to(torch.uint8)


def ramp_flow(before: Tensor, after: Tensor) -> Tensor:
    """Return the exact flow of a ramp: what its levels lost, by the slope."""
    across = (before - after).mean(1) / SLOPE
    return torch.stack([across, torch.zeros_like(across)], dim=1)


def mean_of_both(before: Tensor, after: Tensor) -> Tensor:
    """Interpolate plain and linear motion of brightness exactly, up to rounding."""
    assert before.shape[-1] % 16 == before.shape[-2] % 16 == 0
    return (before + after) / 2 + 1e-6


def turning(*degrees: float) -> Tensor:
    """Return features at these angles, of different lengths."""
    angles = torch.tensor(degrees).deg2rad()
    lengths = torch.arange(1, len(degrees) + 1)[:, None]
    return lengths * torch.stack([angles.cos(), angles.sin()], dim=1)


def cosine(degrees: float) -> float:
    return math.cos(math.radians(degrees))


@pytest.mark.parametrize(
    ("frames", "score"),
    [
        (video(7, 7, 7, 7), 1),
        (video(0, 255, 0, 255), 0),
        (video(0, 0, 0, 255, 255), 1 - 1 / 4),
        (video(10, 13, 16, 19), 1 - 3 / 255),
        (video(19, 16, 13, 10), 1 - 3 / 255),
    ],
    ids=["static", "flicker", "cut", "ramp", "falling"],
)
def test_flickering_is_the_frame_difference(frames: Tensor, score: float) -> None:
    assert vbench.temporal_flickering(frames) == pytest.approx(score, abs=1e-12)


def test_noise_flickers_by_the_mean_difference_of_two_uniform_draws() -> None:
    rng = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (20, 3, 64, 64), generator=rng).to(torch.uint8)
    expected = 1 - (256**2 - 1) / (3 * 256) / 255
    assert vbench.temporal_flickering(noise) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("features", "score"),
    [
        (turning(30, 30, 30), 1),
        (turning(0, 90, 0, 90, 0), (0 + 0.5) / 2),
        (turning(0, 0, 0, 90, 90, 90), (4 / 5 + 2 / 5) / 2),
        (turning(0, 180), 0),
        (turning(0, 20, 40), (cosine(20) + (cosine(20) + cosine(40)) / 2) / 2),
    ],
    ids=["static", "flicker", "cut", "opposite", "turning"],
)
def test_the_subject_is_compared_to_the_first_frame_and_the_last(
    features: Tensor, score: float
) -> None:
    assert vbench.subject_consistency(features) == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize(
    ("features", "image", "score"),
    [
        (turning(0, 0, 0), 0, 1),
        (turning(0, 0, 0), 90, 0.6),
        (turning(0, 0, 0, 90, 90), 0, 0.4 + 0.3 * 3 / 4 + 0),
        (turning(0, 10, 40), 40, 0.4 + 0.3 * (cosine(10) + cosine(30)) / 2 + 0.3 * cosine(30)),
        (turning(0, 180), 90, 0),
    ],
    ids=["static", "other subject", "cut", "turning", "opposite"],
)
def test_the_i2v_subject_weighs_the_image_and_the_steps(
    features: Tensor, image: float, score: float
) -> None:
    found = vbench.i2v_subject(features, 3 * turning(image)[0])
    assert found == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize(
    ("frames", "score"),
    [
        (video(9, 9, 9, 9, 9), 1),
        (video(10, 12, 14, 16, 18), 1),
        (video(10, 61, 10, 61, 10), 1 - 51 / 255),
        (video(0, 0, 0, 200, 200, 200, 200), 1 - 100 / 3 / 255),
        (video(10, 12, 14, 255), 1),
    ],
    ids=["static", "linear", "flicker", "cut", "last frame without an after"],
)
def test_smoothness_is_how_well_odd_frames_follow_from_even_ones(
    frames: Tensor, score: float
) -> None:
    found = vbench.motion_smoothness(frames, mean_of_both)
    assert found == pytest.approx(score, abs=1e-9)


def test_smoothness_looks_at_the_picture_without_its_padding() -> None:
    rng = torch.Generator().manual_seed(0)
    picture = torch.randint(0, 256, (1, 3, 21, 35), generator=rng).to(torch.uint8)
    assert vbench.motion_smoothness(picture.expand(5, -1, -1, -1), mean_of_both) == 1


@pytest.mark.parametrize(("levels_a_frame", "moves"), [(0, 0), (1, 0), (2, 1)])
def test_motion_is_measured_at_eight_frames_a_second(levels_a_frame: int, moves: int) -> None:
    """Three frames of 24 a second make 1.2 and 2.4 pixels; the limit is 1.5 for 64."""
    frames = ramp(torch.full((49,), levels_a_frame))
    assert vbench.dynamic_degree(frames, 24.0, ramp_flow) == moves


@pytest.mark.parametrize(("columns", "moves"), [(2, 0), (5, 1)])
def test_a_twentieth_of_the_picture_decides(columns: int, moves: int) -> None:
    """2 columns of 64 are 3.1 %: 5.1 levels by 2.5 make 2.04 pixels of which 5 % see 1.28."""
    frames = ramp(torch.full((16,), 5), columns)
    assert vbench.dynamic_degree(frames, 8.0, ramp_flow) == moves


@pytest.mark.parametrize(("steps", "moves"), [(3, 0), (4, 1)])
def test_four_steps_of_sixteen_make_a_moving_video(steps: int, moves: int) -> None:
    shifts = torch.zeros(16)
    shifts[1 : 1 + steps] = 20
    assert vbench.dynamic_degree(ramp(shifts), 8.0, ramp_flow) == moves


def test_motion_may_have_any_direction() -> None:
    def down(before: Tensor, after: Tensor) -> Tensor:
        return ramp_flow(before, after).flip(1)

    assert vbench.dynamic_degree(ramp(torch.full((16,), 5)), 8.0, down) == 1


def test_scores_of_frames_are_averaged_over_their_scale() -> None:
    assert vbench.aesthetic_quality(torch.tensor([5.0, 7.0])) == pytest.approx(0.6)
    assert vbench.imaging_quality(torch.tensor([50.0, 90.0])) == pytest.approx(0.7)


def test_one_frame_has_no_motion() -> None:
    with pytest.raises(ValueError, match="1 frames are fewer"):
        vbench.temporal_flickering(video(1))
    with pytest.raises(ValueError, match="1 frames are fewer"):
        vbench.dynamic_degree(video(1, 1, 1), 24.0, ramp_flow)
    with pytest.raises(ValueError, match="2 frames are fewer"):
        vbench.motion_smoothness(video(1, 1), mean_of_both)


@pytest.mark.parametrize(
    ("row", "printed"),
    [
        ((0.9578, 0.8933, 0.9947, 0.7000, 0.5278, 0.6106, 0.9906), 0.8107),
        ((0.9763, 0.9533, 0.9954, 0.7683, 0.4899, 0.5708, 0.9993), 0.8219),
        ((0.9659, 0.9374, 0.9881, 0.9935, 0.5782, 0.7122, 0.9727), 0.8782),
    ],
)
def test_the_average_is_that_of_the_papers_tables(row: tuple[float, ...], printed: float) -> None:
    """Rows of 002, tables 1 and 2."""
    found = average(dict(zip(dimensions(), row, strict=True)))
    assert found == pytest.approx(printed, abs=1.1e-4)


def test_an_absent_dimension_leaves_no_average() -> None:
    scores: dict[str, Metric] = dict.fromkeys(dimensions(), 0.5)
    assert average(scores) == 0.5
    found = average(scores | {"dynamic_degree": AbsentMetric("no RAFT")})
    assert isinstance(found, AbsentMetric) and "dynamic_degree" in found.reason
    assert isinstance(average({}), AbsentMetric)
