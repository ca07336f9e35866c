"""Which bucket a clip goes to, and how its bucket and the policy decide about it."""

from functools import partial

import pytest

from magicdistill.data_pipeline.config import Bucket, DataConfig, Limit, Policy, nearest_bucket
from tests.curation_tables import decide
from tests.scored_clips import scored_clip

BUCKET = Bucket()
TALL, WIDE = Bucket(height=96, width=64), Bucket(num_frames=33, height=64, width=96)
LENIENT = Policy(min_short_side=64, min_long_side=64)
make_clip = partial(
    scored_clip,
    width=64,
    stop=51,
    num_frames_header=51,
    num_frames_decoded=51,
    motion_px=1.0,
    content_hash="",
)


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
    good, bad = decide([make_clip(), make_clip(clip_id="b", failure="empty file")], LENIENT, BUCKET)
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


def test_a_picture_passes_where_motion_has_no_limit():
    picture, one = make_clip(stop=1, motion_px=None), Bucket(num_frames=1)
    (found,) = decide([picture], LENIENT, one)
    assert found.reasons == ("motion: too short to be measured",)
    lifted = Policy(min_short_side=64, min_long_side=64, limits={"all": {"motion.px": Limit()}})
    assert decide([picture], lifted, one)[0].status == "accepted"
