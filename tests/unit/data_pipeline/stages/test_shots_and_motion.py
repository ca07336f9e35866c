"""Shots and motion on clips whose truth is known."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import cv2
import numpy as np
import pytest

from magicdistill.data_pipeline.media.video import decode
from magicdistill.data_pipeline.scorers.base import Frame
from magicdistill.data_pipeline.sources.package_clips import find_clips
from magicdistill.data_pipeline.sources.portrait_world.world import render_clip
from magicdistill.data_pipeline.stages.motion import MotionMeter
from magicdistill.data_pipeline.stages.shots import (
    ShotMeters,
    shot_meters,
    spans_between,
    trimmed,
)
from magicdistill.data_pipeline.stages.transitions import Transition
from tests.unit.data_pipeline.pictures import picture, view


def find_cuts(frames: np.ndarray, meters: ShotMeters | None = None) -> list[Transition]:
    meters = meters or shot_meters("koala")
    for frame in frames:
        meters.update(Frame(frame))
    return meters.cuts()


@pytest.mark.parametrize("seed", range(4))
def test_a_portrait_has_no_cut(seed: int):
    assert find_cuts(render_clip(seed)) == []


def test_two_portraits_in_a_row_have_one_cut():
    frames = np.concatenate([render_clip(1, 20), render_clip(2, 20)])
    (cut,) = find_cuts(frames)
    assert 19 <= cut.start <= cut.stop <= 21 and cut.is_inside(0, 40)


def test_the_shots_of_a_real_film_are_found():
    bikes = next(path for path, _ in find_clips() if path.name == "bikes.mp4")
    cuts = find_cuts(np.stack(list(decode(bikes))))
    for cut, true in zip(cuts, (29, 75, 136, 186, 241), strict=True):
        assert true - 1 <= cut.start <= true <= cut.stop <= true + 1


def scene(seed: int, num_frames: int = 50) -> np.ndarray:
    """Return a slow pan over a picture of its own."""
    whole = picture(seed, 200, 400)
    return np.stack([view(whole, 180, 320, x=20 + 0.3 * at, y=10.0) for at in range(num_frames)])


def mixed(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    return cv2.addWeighted(first, 1 - share, second, share, 0)


def dissolve(length: int) -> np.ndarray:
    one, other = scene(1, 40 + length), scene(2, 40 + length)
    between = [mixed(one[40 + at], other[at], (at + 1) / (length + 1)) for at in range(length)]
    return np.stack([*one[:40], *between, *other[length:]])


def fade(level: int) -> np.ndarray:
    one, other, blank = scene(1, 52), scene(2, 52), np.full((180, 320, 3), level, np.uint8)
    out = [mixed(one[40 + at], blank, (at + 1) / 13) for at in range(12)]
    back = [mixed(blank, other[at], (at + 1) / 13) for at in range(12)]
    return np.stack([*one[:40], *out, *[blank] * 8, *back, *other[12:]])


def flash(lengths: tuple[int, ...]) -> np.ndarray:
    frames = scene(1, 80).astype(int)
    for at, brighter in enumerate(lengths, 40):
        frames[at] += brighter
    return np.clip(frames, 0, 255).astype(np.uint8)


def reframed(shift: int) -> np.ndarray:
    """A cut at frame 40 to another part of the same picture; 60 px of 1280 are 15 here."""
    return np.stack(
        [f[:, : 320 - shift] if at < 40 else f[:, shift:] for at, f in enumerate(scene(1, 80))]
    )


def punched_in(zoom: float) -> np.ndarray:
    closer = cv2.getRotationMatrix2D((160, 90), 0, zoom)
    return np.stack(
        [
            f if at < 40 else cv2.warpAffine(f, closer, (320, 180))
            for at, f in enumerate(scene(1, 80))
        ]
    )


def shaken(px: float, seed: int = 0) -> np.ndarray:
    whole = picture(seed + 1, 240, 440)
    offsets = np.random.default_rng(seed).normal(0, px, (80, 2))
    return np.stack([view(whole, 180, 320, x=60 + dx, y=30 + dy) for dx, dy in offsets])


def whipped() -> np.ndarray:
    """A pan of 4 pixels a frame, over twice the width of the picture."""
    whole = picture(1, 180, 700)
    return np.stack([view(whole, 180, 320, x=4.0 * at, y=0.0) for at in range(80)])


TRUTHS: dict[str, tuple[Callable[[], np.ndarray], tuple[int, int] | None]] = {
    "a cut": (lambda: np.concatenate([scene(1, 40), scene(2, 40)]), (40, 40)),
    **{f"a dissolve of {n}": (partial(dissolve, n), (40, 40 + n)) for n in (4, 8, 16, 32, 48)},
    "a fade through black": (partial(fade, 0), (40, 72)),
    "a fade through white": (partial(fade, 255), (40, 72)),
    "a reframing by 15 px": (partial(reframed, 15), (40, 40)),
    "a punch-in by 1.3": (partial(punched_in, 1.3), (40, 40)),
    "a punch-in by 1.15": (partial(punched_in, 1.15), (40, 40)),
    **{f"a flash of {n}": (partial(flash, (160,) * n), None) for n in (1, 2, 3)},
    "a weak flash": (partial(flash, (60, 60)), None),
    "a flash that decays": (partial(flash, (200, 140, 70)), None),
    "a pan": (partial(scene, 1, 80), None),
    "a slightly shaken camera": (partial(shaken, 1), None),
    **{f"a shaken camera, {n}": (partial(shaken, 2, n), None) for n in (1, 2, 3)},
    "a cut under a shaken camera": (
        lambda: np.concatenate([shaken(3, 1)[:40], shaken(3, 2)[:40]]),
        (40, 40),
    ),
    "a fast pan": (whipped, None),
}


@pytest.mark.parametrize("name", TRUTHS)
def test_a_transition_is_found_once_with_all_its_frames_and_nothing_else_is_one(name: str):
    make, truth = TRUTHS[name]
    frames = make()
    cuts = find_cuts(frames)
    assert len(cuts) == (truth is not None), cuts
    if truth:
        # The four frames that are trimmed on either side cover what the measure leaves open.
        first, second = spans_between(cuts, len(frames), trim_frames=4)
        assert truth[0] - 12 <= first[1] <= truth[0]
        assert truth[1] <= second[0] <= truth[1] + 12


def test_a_cut_belongs_to_the_clips_that_hold_frames_of_both_its_sides():
    cut, dissolve = Transition(40, 40), Transition(40, 60)
    assert cut.is_inside(0, 50) and cut.is_inside(39, 41) and dissolve.is_inside(59, 80)
    assert not cut.is_inside(0, 40) and not cut.is_inside(40, 80)
    assert not dissolve.is_inside(0, 40) and not dissolve.is_inside(60, 80)


def test_spans_lie_between_cuts_and_keep_off_them():
    assert spans_between([], 50, trim_frames=4) == [(0, 50)]
    assert spans_between([Transition(20, 21)], 50, trim_frames=4) == [(0, 16), (25, 50)]
    assert spans_between([Transition(20, 40)], 60, trim_frames=4) == [(0, 16), (44, 60)]
    assert spans_between([Transition(2, 2), Transition(9, 9)], 60, trim_frames=4) == [(13, 60)]


@pytest.mark.parametrize(
    ("cuts", "num_frames", "span"),
    [
        ([], 50, (0, 50)),
        ([(1, 3), (48, 48)], 50, (3, 48)),
        ([(5, 5), (25, 25), (45, 45)], 50, (0, 50)),
        ([(2, 3)], 5, (3, 5)),
        ([(0, 20), (80, 98)], 100, (20, 80)),
        ([(30, 50)], 100, (0, 100)),
        ([(2, 50)], 50, (0, 2)),
        ([(0, 50)], 50, (0, 50)),
    ],
)
def test_frames_of_a_neighbour_are_trimmed_off_both_ends(
    cuts: list[tuple[int, int]], num_frames: int, span: tuple[int, int]
):
    found = [Transition(*cut) for cut in cuts]
    assert trimmed(found, num_frames, trim_frames=4) == span


def _shifted(shifts: list[int]) -> list[np.ndarray]:
    noise = np.random.default_rng(0).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    picture = cv2.resize(noise, (240, 240), interpolation=cv2.INTER_CUBIC)
    return [picture[40:168, 40 + shift : 168 + shift] for shift in shifts]


def test_motion_is_the_displacement_in_pixels_at_the_fixed_short_side():
    meter = MotionMeter(fps=24.0, short_side=64, sampling_fps=24.0)
    for frame in _shifted([0, 2, 4, 6, 8, 10]):  # 2 px at side 128 are 1 px at 64
        meter.update(Frame(frame))
    assert meter.mean_px(0, 6) == pytest.approx(1.0, rel=0.15)


def motion_of(frames: np.ndarray, fps: float = 24.0, short_side: int = 120) -> float:
    meter = MotionMeter(fps, short_side, sampling_fps=2.0)
    for frame in frames:
        meter.update(Frame(frame))
    motion = meter.mean_px(0, len(frames))
    assert motion is not None
    return motion


def panned(px: float, num_frames: int = 25, sigma: float = 0.0) -> np.ndarray:
    whole = picture(3, 120, 220 + int(px * num_frames))
    frames = [view(whole, 120, 213, x=px * at, y=0.0) for at in range(num_frames)]
    noise = np.random.default_rng(0).normal(0, sigma, (num_frames, 120, 213, 3))
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("px", [0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0])
def test_a_pan_measures_its_length_however_fast_it_is(px: float):
    # Farneback's flow is short of slow pans in flat parts of a picture; what is fast is not.
    assert motion_of(panned(px)) == pytest.approx(12 * px, rel=0.1 if px > 0.3 else 0.45)
    assert motion_of(panned(px / 2.5, 61), fps=60.0) == pytest.approx(
        motion_of(panned(px)), rel=0.05
    )


def test_slow_motion_is_farnebacks_flow():
    frames = panned(0.1)
    gray = [cv2.cvtColor(frames[at], cv2.COLOR_RGB2GRAY) for at in (0, 12, 24)]
    lengths = [
        np.linalg.norm(
            cv2.calcOpticalFlowFarneback(one, two, np.empty(0), 0.5, 3, 15, 3, 5, 1.2, 0), axis=-1
        ).mean()
        for one, two in pairwise(gray)
    ]
    assert motion_of(frames) == pytest.approx(np.mean(lengths), rel=1e-6)


def test_motion_is_that_of_half_a_second_at_rates_that_two_does_not_divide():
    fps_25 = motion_of(
        panned(2.0, 26), fps=25.0
    )  # samples are 12 frames apart, half a second is 12.5
    assert fps_25 == pytest.approx(25, rel=0.05)


@pytest.mark.parametrize("px", [4, 8])
def test_a_small_thing_that_crosses_the_picture_counts_by_its_area_and_its_way(px: int):
    frames = np.repeat(picture(4, 120, 213)[None], 13, axis=0)
    thing = picture(5, 40, 40)
    for at, frame in enumerate(frames):
        frame[40:80, 5 + px * at : 45 + px * at] = thing
    true = 12 * px * 40 * 40 / (120 * 213)
    assert true / 2 < motion_of(frames) < 2 * true


def test_noise_on_a_still_picture_is_little_motion():
    assert motion_of(panned(0.0, sigma=4.0)) < 0.3
    assert motion_of(panned(2.0, sigma=4.0)) == pytest.approx(24, rel=0.1)


def test_motion_is_measured_inside_the_span_only():
    meter = MotionMeter(fps=24.0, short_side=128, sampling_fps=12.0)
    for frame in _shifted([0] * 10 + [6] * 10):
        meter.update(Frame(frame))
    assert meter.mean_px(0, 10) == pytest.approx(0, abs=0.05)
    assert meter.mean_px(10, 20) == pytest.approx(0, abs=0.05)
    whole = meter.mean_px(0, 20)
    assert whole is not None and whole > 0.3
    assert meter.mean_px(3, 5) is None
