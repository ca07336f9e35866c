"""Which frames of a clip are encoded, and how they are brought to the shape of its bucket."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from magicdistill.data_pipeline.config import Bucket
from magicdistill.data_pipeline.latents.windows import (
    decode_windows,
    fit,
    num_resampled,
    read_windows,
    window_starts,
    windows_of,
)
from magicdistill.data_pipeline.media.video import VideoError, hash_content, write_mp4
from magicdistill.data_pipeline.rows import is_temporary
from tests.scored_clips import scored_clip

BUCKET = Bucket()
make_clip = partial(scored_clip, stop=51, content_hash="", source_id="s")


@pytest.mark.parametrize(
    ("count", "starts"), [(1, [17]), (2, [0, 34]), (3, [0, 17, 34]), (99, list(range(35)))]
)
def test_windows_are_spread_evenly_over_the_clip(count: int, starts: list[int]):
    assert window_starts(make_clip(), BUCKET, count) == starts


def test_a_clip_as_long_as_the_bucket_has_one_window():
    assert window_starts(make_clip(stop=17), BUCKET, 3) == [0]
    with pytest.raises(ValueError, match="shorter"):
        window_starts(make_clip(stop=16), BUCKET, 1)


def test_each_window_is_followed_by_its_mirror_image():
    windows = windows_of(make_clip(), BUCKET, 2, flip=True)
    assert [(w.start, w.flipped) for w in windows] == [
        (0, False), (0, True), (34, False), (34, True)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fps", "length", "expected"), [(24, 51, 51), (48, 51, 26), (60, 300, 120), (12, 9, 17)]
)
def test_length_is_counted_at_the_buckets_frame_rate(fps: float, length: int, expected: int):
    assert num_resampled(make_clip(stop=length, fps=float(fps)), BUCKET) == expected


def test_frames_are_taken_by_time_not_by_number(tmp_path: Path):
    levels = np.arange(60, dtype=np.uint8) * 4
    frames = np.broadcast_to(levels[:, None, None, None], (60, 64, 64, 3)).copy()
    write_mp4(tmp_path / "clip.mp4", frames, 48)
    clip = make_clip(path=str(tmp_path / "clip.mp4"), start=10, stop=60, fps=48.0)
    (window,) = decode_windows(clip, Path(clip.video.path), BUCKET, 1)
    start = window_starts(clip, BUCKET, 1)[0]
    expected = levels[10 + 2 * (start + np.arange(17))]
    assert window.shape == (17, 64, 64, 3)
    np.testing.assert_allclose(window.mean((1, 2, 3)), expected, atol=4)


def test_a_file_that_was_replaced_since_it_was_scored_is_not_taken_for_it(tmp_path: Path):
    path = tmp_path / "clip.mp4"
    write_mp4(path, np.zeros((51, 64, 64, 3), np.uint8), 24)
    clip = make_clip(path=str(path), content_hash=hash_content(path))
    assert decode_windows(clip, path, BUCKET, 1).shape[1] == 17
    write_mp4(path, np.full((51, 64, 64, 3), 99, np.uint8), 24)
    with pytest.raises(VideoError, match="the file was replaced") as failure:
        decode_windows(clip, path, BUCKET, 1)
    assert is_temporary(str(failure.value))  # the next listing scores it again
    rendered = make_clip(path=str(path), content_hash="x", uri="portrait-world:0?size=64")
    assert decode_windows(rendered, path, BUCKET, 1).any()


def test_fitting_crops_about_the_centre_and_averages_areas():
    frame = np.zeros((128, 256, 3), dtype=np.uint8)
    frame[:, 64:192] = 100
    assert (fit(frame, BUCKET) == 100).all()
    assert fit(frame, Bucket(height=64, width=128)).shape == (64, 128, 3)


def test_reading_windows_names_the_clip_that_cannot_be_read():
    with pytest.raises(VideoError, match=r"^s: .*missing file"):
        list(read_windows([make_clip(path="/nowhere/clip.mp4")], BUCKET, 1))


def test_an_enlarged_frame_is_smooth():
    ramp = np.repeat(np.linspace(0, 255, 16, dtype=np.uint8)[None, :, None], 16, 0).repeat(3, 2)
    steps = np.diff(fit(ramp, BUCKET)[32, 8:-8, 0].astype(int))
    assert steps.max() <= 8 and (steps > 0).mean() > 0.9  # squares would jump by 17 and stand
