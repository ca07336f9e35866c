from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from magicdistill.data_pipeline.config import Bucket, DataConfig, Limit, Policy, nearest_bucket
from magicdistill.data_pipeline.latents.windows import (
    decode_windows,
    fit,
    num_resampled,
    read_windows,
    window_starts,
    windows_of,
)
from magicdistill.data_pipeline.ledger.policy import decide
from magicdistill.data_pipeline.media.video import VideoError, hash_content, write_mp4
from magicdistill.data_pipeline.rows import STORED, ClipRow, Video, is_temporary

BUCKET = Bucket()
TALL, WIDE = Bucket(height=96, width=64), Bucket(num_frames=33, height=64, width=96)
LENIENT = Policy(min_short_side=64, min_long_side=64)


def make_clip(path: str = "", **changes: object) -> ClipRow:
    video = Video("v", "s", "file:///clip.mp4", path, "f", "l", "portrait")
    listed: dict[str, Any] = {key: changes.pop(key) for key in STORED if key in changes}
    fields = {
        "clip_id": "c",
        "video": replace(video, **listed),
        "measures": "m",
        "stop": 51,
        "decoder": "decord",
        "width": 64,
        "height": 64,
        "fps": 24.0,
        "num_frames_header": 51,
        "num_frames_decoded": 51,
        "motion_px": 1.0,
    }
    return ClipRow(**(fields | changes))  # type: ignore[arg-type]


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
    clip = make_clip(str(tmp_path / "clip.mp4"), start=10, stop=60, fps=48.0)
    (window,) = decode_windows(clip, Path(clip.video.path), BUCKET, 1)
    start = window_starts(clip, BUCKET, 1)[0]
    expected = levels[10 + 2 * (start + np.arange(17))]
    assert window.shape == (17, 64, 64, 3)
    np.testing.assert_allclose(window.mean((1, 2, 3)), expected, atol=4)


def test_a_file_that_was_replaced_since_it_was_scored_is_not_taken_for_it(tmp_path: Path):
    path = tmp_path / "clip.mp4"
    write_mp4(path, np.zeros((51, 64, 64, 3), np.uint8), 24)
    clip = make_clip(str(path), content_hash=hash_content(path))
    assert decode_windows(clip, path, BUCKET, 1).shape[1] == 17
    write_mp4(path, np.full((51, 64, 64, 3), 99, np.uint8), 24)
    with pytest.raises(VideoError, match="the file was replaced") as failure:
        decode_windows(clip, path, BUCKET, 1)
    assert is_temporary(str(failure.value))  # the next listing scores it again
    rendered = make_clip(str(path), content_hash="x", uri="portrait-world:0?size=64")
    assert decode_windows(rendered, path, BUCKET, 1).any()


def test_fitting_crops_about_the_centre_and_averages_areas():
    frame = np.zeros((128, 256, 3), dtype=np.uint8)
    frame[:, 64:192] = 100
    assert (fit(frame, BUCKET) == 100).all()
    assert fit(frame, Bucket(height=64, width=128)).shape == (64, 128, 3)


def test_reading_windows_names_the_clip_that_cannot_be_read():
    with pytest.raises(VideoError, match=r"^s: .*missing file"):
        list(read_windows([make_clip("/nowhere/clip.mp4")], BUCKET, 1))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"width": 48}, "smaller than the bucket"),
        ({"num_frames_decoded": 30}, "damaged: 30 of 51"),
        ({"stop": 16}, "frames: 16 at 24 fps < 17"),
        ({"fps": 100.0}, "frames: 13 at 24 fps < 17"),
        ({"num_cuts": 2}, "shot cut: 2 > 0"),
        ({"motion_px": 0.1}, "motion: 0.10 px outside 0.3-8"),
        ({"motion_px": None}, "motion: too short"),
    ],
)
def test_a_clip_is_rejected_with_its_reason(changes: dict, reason: str):
    (decision,) = decide([make_clip(**changes)], LENIENT, BUCKET)
    assert decision.status == "rejected"
    assert any(reason in given for given in decision.reasons)


def test_a_good_clip_is_accepted_and_a_failed_one_keeps_its_reason():
    good, bad = decide([make_clip(), make_clip(failure="empty file")], LENIENT, BUCKET)
    assert (good.status, good.reasons) == ("accepted", ())
    assert (bad.status, bad.reasons) == ("failed", ("empty file",))


@pytest.mark.parametrize(
    ("width", "height", "bucket"),
    [(64, 96, TALL), (1080, 1920, TALL), (1920, 1080, WIDE), (99, 98, WIDE), (98, 99, TALL)],
)
def test_a_clip_goes_to_the_bucket_of_the_nearest_aspect(width: int, height: int, bucket: Bucket):
    assert nearest_bucket(width, height, (TALL, WIDE)) is bucket
    assert nearest_bucket(width, height, (WIDE, TALL)) is bucket
    assert nearest_bucket(7, 7, (TALL, WIDE)) is TALL  # as near to both


def test_a_clip_is_judged_against_its_own_bucket():
    sizes = [(64, 96), (96, 64), (60, 96), (96, 60)]
    clips = [
        make_clip(clip_id=str(i), source_id=str(i), width=width, height=height, stop=20 + i)
        for i, (width, height) in enumerate(sizes)
    ]
    tall, wide, narrow, low = decide(clips, Policy(min_short_side=1, min_long_side=1), TALL, WIDE)
    assert tall.status == "accepted"
    assert wide.reasons == ("frames: 21 at 24 fps < 33",)
    assert narrow.reasons == (f"resolution: 96x60 is smaller than the bucket {TALL}",)
    assert low.reasons[0] == f"resolution: 60x96 is smaller than the bucket {WIDE}"


def test_the_crop_decides_about_the_bucket():
    bars = {"top": 0.0, "bottom": 0.0, "left": 0.25, "right": 0.25, "share": 0.5}
    scores = {f"letterbox.{name}": value for name, value in bars.items()}
    policy = Policy(min_short_side=1, min_long_side=1, crop_bars=True)
    (decision,) = decide([make_clip(width=144, height=108, scores=scores)], policy, TALL, WIDE)
    assert (decision.clip.width, decision.status) == (72, "accepted")


@pytest.mark.parametrize(
    ("bucket", "reason"),
    [
        ({"height": 32, "width": 32}, "has the same aspect"),
        ({"height": 96, "fps": 25.0}, "has another frame rate"),
    ],
)
def test_a_bucket_that_gets_no_clips_or_another_time_is_refused(bucket: dict, reason: str):
    config = {"sources": [{"kind": "portrait-world", "num_clips": 1}], "other_buckets": [bucket]}
    with pytest.raises(ValueError, match=reason):
        DataConfig.model_validate(config)


def test_the_default_policy_asks_for_the_papers_resolution():
    (decision,) = decide([make_clip(width=960, height=540)], Policy(), BUCKET)
    assert decision.status == "accepted"
    (decision,) = decide([make_clip(width=960, height=536)], Policy(), BUCKET)
    assert decision.reasons == ("resolution: short side 536 < 540",)


def test_a_policy_says_how_far_clips_are_enlarged():
    small = make_clip(width=40, height=64)
    for policy, status in (
        (LENIENT, "rejected"),
        (LENIENT.model_copy(update={"max_upscale": 1.6}), "accepted"),
    ):
        lenient = policy.model_copy(update={"min_short_side": 16})
        assert decide([small], lenient, BUCKET)[0].status == status
    assert LENIENT.version == LENIENT.model_copy(update={"max_upscale": 1.0}).version
    assert LENIENT.version != LENIENT.model_copy(update={"max_upscale": 2.0}).version


def test_an_enlarged_frame_is_smooth():
    ramp = np.repeat(np.linspace(0, 255, 16, dtype=np.uint8)[None, :, None], 16, 0).repeat(3, 2)
    steps = np.diff(fit(ramp, BUCKET)[32, 8:-8, 0].astype(int))
    assert steps.max() <= 8 and (steps > 0).mean() > 0.9  # squares would jump by 17 and stand


def test_a_picture_passes_where_motion_has_no_limit():
    picture, one = make_clip(stop=1, motion_px=None), Bucket(num_frames=1)
    (found,) = decide([picture], LENIENT, one)
    assert found.reasons == ("motion: too short to be measured",)
    lifted = Policy(min_short_side=64, min_long_side=64, limits={"all": {"motion.px": Limit()}})
    assert decide([picture], lifted, one)[0].status == "accepted"
