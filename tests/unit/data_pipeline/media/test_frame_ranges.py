"""Spans and crops: only the named frames and pixels are decoded, however they are reached."""

from pathlib import Path

import numpy as np
import pytest

from magicdistill.data_pipeline.config import Bucket, Measures
from magicdistill.data_pipeline.latents.windows import decode_windows, num_resampled
from magicdistill.data_pipeline.media.frame_index import FrameIndex
from magicdistill.data_pipeline.media.frame_ranges import cropped, frame_range_of
from magicdistill.data_pipeline.media.video import (
    VideoError,
    decode,
    read_frames,
    write_mp4,
)
from magicdistill.data_pipeline.rows import ClipRow, Video
from magicdistill.data_pipeline.stages.score import score_video

INDEX = FrameIndex(width=1920, height=1080, fps=25.0, num_frames=1000, codec="h264")


def make_video(path: str = "", **changes: object) -> Video:
    fields = {
        "video_id": "v",
        "source_id": "s",
        "uri": "file:///clip.mp4",
        "path": path,
        "fingerprint": "f",
        "license": "l",
        "mixture": "portrait",
        "split_shots": False,
    }
    return Video(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def ramp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 frames at 30 per second with several key frames: brightness tells the frame's number."""
    path = tmp_path_factory.mktemp("ramp") / "ramp.mp4"
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 40, (300, 64, 128, 1), dtype=np.uint8)
    levels = (np.arange(300) % 200).astype(np.uint8)[:, None, None, None]
    frames = np.repeat(texture + levels, 3, axis=-1)
    frames[:, :, 64:] = 255 - frames[:, :, 64:]
    write_mp4(path, frames, 30)
    return path


def test_seconds_become_frames_and_nothing_means_all():
    view = frame_range_of(make_video(t0_s=28.028, t1_s=30.5), INDEX)
    assert (view.start, view.stop, view.num_frames) == (701, 762, 61)
    view = frame_range_of(make_video(), INDEX)
    assert (view.start, view.stop, view.num_frames, view.crop) == (0, None, 1000, ())
    assert (view.width, view.height) == (1920, 1080)


def test_a_crop_is_scaled_from_the_frame_that_it_was_measured_on():
    hdtf = make_video(crop=(412.0, 0.0, 1011.0, 599.0), crop_frame=(0.0, 720.0))
    assert frame_range_of(hdtf, INDEX).crop == (618, 0, 1516, 898)
    vfhq = make_video(crop=(516.0, 12.0, 1204.0, 700.0), crop_frame=(1920.0, 1080.0))
    assert frame_range_of(vfhq, INDEX).crop == (516, 12, 1204, 700)
    fractions = make_video(crop=(0.5, 0.25, 1.2, 0.75), crop_frame=(1.0, 1.0))
    view = frame_range_of(fractions, INDEX)
    assert view.crop == (960, 270, 1920, 810) and (view.width, view.height) == (960, 540)


def test_a_span_or_a_crop_outside_is_a_reason():
    with pytest.raises(VideoError, match="bad span: starts at frame 1000 of 1000"):
        frame_range_of(make_video(t0_s=40.0, t1_s=50.0), INDEX)
    outside = make_video(crop=(2000.0, 0.0, 2500.0, 500.0), crop_frame=(1920.0, 1080.0))
    with pytest.raises(VideoError, match="bad crop"):
        frame_range_of(outside, INDEX)


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (1, 3), (137, 150), (251, 300), (290, 400)])
def test_a_span_is_the_same_part_of_a_full_pass(ramp: Path, start: int, stop: int):
    full = np.stack(list(decode(ramp)))
    part = np.stack(list(decode(ramp, start, stop)))
    assert np.array_equal(part, full[start:stop])
    chosen = list(read_frames(ramp, [start, min(stop, 300) - 1]))
    assert np.array_equal(np.stack(chosen), full[[start, min(stop, 300) - 1]])


def score(path: Path, **changes: object) -> ClipRow:
    (clip,) = score_video(make_video(str(path), **changes), path, Measures())
    return clip


def test_scores_and_windows_see_the_span_and_the_crop_only(ramp: Path):
    box = {"crop": (0.0, 0.0, 0.5, 1.0), "crop_frame": (1.0, 1.0)}
    clip = score(ramp, t0_s=2.0, t1_s=4.0, caption="c", imported_scores={"a.b": 1.0}, **box)
    assert (clip.start, clip.stop, clip.num_frames_header) == (60, 120, 60)
    assert (clip.width, clip.height, clip.crop) == (64, 64, (0, 0, 64, 64))
    assert (clip.video.caption, clip.video.imported_scores) == ("c", {"a.b": 1.0})
    bucket = Bucket(num_frames=17, height=64, width=64, fps=30.0)
    (window,) = decode_windows(clip, ramp, bucket, 1)
    full = np.stack(list(decode(ramp)))
    start = 60 + (60 - 17) // 2
    assert np.array_equal(window, full[start : start + 17, :, :64])


def test_a_span_past_the_end_counts_what_is_missing(ramp: Path):
    clip = score(ramp, t0_s=9.0, t1_s=12.0)
    assert (clip.num_frames_header, clip.num_frames_decoded) == (90, 30)


def test_cuts_outside_the_span_do_not_count(tmp_path: Path):
    rng = np.random.default_rng(0)
    scenes = rng.integers(0, 255, (2, 1, 64, 64, 3), dtype=np.uint8)
    write_mp4(tmp_path / "cut.mp4", np.concatenate([np.repeat(s, 30, axis=0) for s in scenes]), 30)
    assert score(tmp_path / "cut.mp4").num_cuts == 1
    assert score(tmp_path / "cut.mp4", t0_s=1.2).num_cuts == 0
    rounded = score(tmp_path / "cut.mp4", t0_s=28 / 30, t1_s=58 / 30)
    assert (rounded.start, rounded.stop, rounded.num_cuts) == (30, 58, 0)
    rounded = score(tmp_path / "cut.mp4", t1_s=32 / 30)
    assert (rounded.start, rounded.stop, rounded.num_cuts) == (0, 30, 0)
    assert score(tmp_path / "cut.mp4", t0_s=20 / 30).num_cuts == 1


def test_a_film_of_which_trimming_leaves_nothing_says_so(tmp_path: Path):
    frames = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3), dtype=np.uint8)
    write_mp4(tmp_path / "flicker.mp4", frames, 30)
    with pytest.raises(VideoError, match="no shot outlasts trimming"):
        score(tmp_path / "flicker.mp4", split_shots=True)


def test_inter4ks_clips_fill_129_frames_when_every_second_frame_is_played(tmp_path: Path):
    frames = np.zeros((300, 64, 64, 3), np.uint8)
    levels = np.clip(np.arange(300), 8, 291) % 128  # still at both ends, where cuts are trimmed
    frames += levels.astype(np.uint8)[:, None, None, None]
    write_mp4(tmp_path / "1.mp4", frames, 60)
    bucket = Bucket(num_frames=129, height=64, width=64, fps=24.0)
    assert num_resampled(score(tmp_path / "1.mp4"), bucket) == 120
    slow = score(tmp_path / "1.mp4", time_scale=1.25)
    assert (slow.fps, num_resampled(slow, bucket)) == (48.0, 150)
    (window,) = decode_windows(slow, tmp_path / "1.mp4", bucket, 1)
    full = np.stack(list(decode(tmp_path / "1.mp4")))
    assert np.array_equal(window, full[20 : 20 + 2 * 129 : 2])


def test_a_crop_of_nothing_is_the_frame():
    frame = np.zeros((4, 6, 3), np.uint8)
    assert cropped(frame, ()) is frame
    assert cropped(frame, (1, 0, 6, 3)).shape == (3, 5, 3)
