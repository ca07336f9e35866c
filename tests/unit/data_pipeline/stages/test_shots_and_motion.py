"""Shots and motion on clips whose truth is known."""

import cv2
import numpy as np
import pytest

from magicdistill.data_pipeline.media.video import decode
from magicdistill.data_pipeline.sources.package_clips import find_clips
from magicdistill.data_pipeline.sources.portrait_world.world import render_clip
from magicdistill.data_pipeline.stages.motion import MotionMeter
from magicdistill.data_pipeline.stages.shots import ShotMeter, spans_between, trimmed


def find_cuts(frames: np.ndarray) -> list[int]:
    meter = ShotMeter()
    for frame in frames:
        meter.update(frame)
    return meter.cuts()


@pytest.mark.parametrize("seed", range(4))
def test_a_portrait_has_no_cut(seed: int):
    assert find_cuts(render_clip(seed)) == []


def test_two_portraits_in_a_row_have_one_cut():
    frames = np.concatenate([render_clip(1, 20), render_clip(2, 20)])
    assert 20 in find_cuts(frames)
    assert set(find_cuts(frames)) <= {19, 20, 21}


def test_the_shots_of_a_real_film_are_found():
    bikes = next(path for path, _ in find_clips() if path.name == "bikes.mp4")
    cuts = find_cuts(np.stack(list(decode(bikes))))
    assert {29, 75, 136, 186, 241} <= set(cuts)
    assert all(min(abs(cut - true) for true in (29, 75, 136, 186, 241)) <= 1 for cut in cuts)


def test_spans_lie_between_cuts_and_keep_off_them():
    assert spans_between([], 50, trim_frames=4) == [(0, 50)]
    assert spans_between([20, 21], 50, trim_frames=4) == [(0, 16), (25, 50)]


@pytest.mark.parametrize(
    ("cuts", "num_frames", "span"),
    [
        ([], 50, (0, 50)),
        ([1, 3, 48], 50, (3, 48)),
        ([5, 25, 45], 50, (0, 50)),
        ([2, 3], 5, (3, 5)),
    ],
)
def test_frames_of_a_neighbour_are_trimmed_off_both_ends(
    cuts: list[int], num_frames: int, span: tuple[int, int]
):
    assert trimmed(cuts, num_frames, trim_frames=4) == span


def _shifted(shifts: list[int]) -> list[np.ndarray]:
    noise = np.random.default_rng(0).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    picture = cv2.resize(noise, (240, 240), interpolation=cv2.INTER_CUBIC)
    return [picture[40:168, 40 + shift : 168 + shift] for shift in shifts]


def test_motion_is_the_displacement_in_pixels_at_the_fixed_short_side():
    meter = MotionMeter(fps=24.0, short_side=64, sampling_fps=24.0)
    for frame in _shifted([0, 2, 4, 6, 8, 10]):  # 2 px at side 128 are 1 px at 64
        meter.update(frame)
    assert meter.mean_px(0, 6) == pytest.approx(1.0, rel=0.15)


def test_motion_is_measured_inside_the_span_only():
    meter = MotionMeter(fps=24.0, short_side=128, sampling_fps=12.0)
    for frame in _shifted([0] * 10 + [6] * 10):
        meter.update(frame)
    assert meter.mean_px(0, 10) == pytest.approx(0, abs=0.05)
    assert meter.mean_px(10, 20) == pytest.approx(0, abs=0.05)
    whole = meter.mean_px(0, 20)
    assert whole is not None and whole > 0.3
    assert meter.mean_px(3, 5) is None
