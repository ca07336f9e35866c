"""Decisions over stored scores: limits by mixture, copies, caps, bars, and what is absent."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from magicdistill.data_pipeline.config import Bucket, DataConfig, Limit, Policy
from magicdistill.data_pipeline.io.query import Database
from magicdistill.data_pipeline.ledger.policy import Decision
from magicdistill.data_pipeline.rows import ClipRow
from tests.curation_tables import decide
from tests.scored_clips import scored_clip

BUCKET = Bucket()
LENIENT = Policy(min_short_side=64, min_long_side=64)


def hashed(name: str, bits: np.ndarray, **changes: object) -> ClipRow:
    return scored_clip(name, blobs={"phash": np.packbits(bits).tobytes()}, **changes)


def decision_on(clip: ClipRow, policy: Policy = LENIENT) -> Decision:
    (decision,) = decide([clip], policy, BUCKET)
    return decision


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("black.longest_s", 0.75, "black.longest_s: 0.75 > 0.5"),
        ("exposure.luma", 12.0, "exposure.luma: 12 < 20"),
        ("exposure.luma", 240.0, "exposure.luma: 240 > 235"),
        ("letterbox.share", 0.1, "letterbox.share: 0.1 > 0.02"),
        ("text.area", 0.05, "text.area: 0.05 > 0.02"),
        ("safety.nsfw", 0.9, "safety.nsfw: 0.9 > 0.5"),
        ("faces.single_share", 0.9, "faces.single_share: 0.9 < 0.96"),
    ],
)
def test_a_score_beyond_its_limit_rejects_with_both_numbers(name: str, value: float, reason: str):
    assert decision_on(scored_clip(scores={name: value})).reasons == (reason,)


def test_limits_differ_by_mixture():
    faceless = scored_clip(scores={"faces.single_share": 0.0}, motion_px=1.5)
    assert decision_on(faceless).status == "rejected"
    assert (
        decision_on(replace(faceless, video=replace(faceless.video, mixture="general"))).status
        == "accepted"
    )
    assert decision_on(scored_clip(motion_px=0.5)).status == "accepted"
    slow = decision_on(scored_clip(motion_px=0.5, mixture="general"))
    assert slow.reasons == ("motion: 0.50 px outside 1-10",)
    dull = {"scores": {"aesthetics.laion": 4.7}, "scorers": {"aesthetics": "v"}}
    assert decision_on(scored_clip(**dull)).status == "accepted"
    assert decision_on(scored_clip(**dull, mixture="general")).reasons == (
        "aesthetics.laion: 4.7 < 5",
    )


def test_a_recipe_sets_and_lifts_limits_for_all_or_for_one_mixture():
    clip = scored_clip(scores={"text.area": 0.05, "blur.effect": 0.8})
    strict = {"blur.effect": Limit(max=0.5), "text.area": Limit()}
    for_all = LENIENT.model_copy(update={"limits": {"all": strict}})
    assert decision_on(clip, for_all).reasons == ("blur.effect: 0.8 > 0.5",)
    elsewhere = LENIENT.model_copy(update={"limits": {"anime": strict}})
    assert decision_on(clip, elsewhere).reasons == ("text.area: 0.05 > 0.02",)


def test_imported_scores_are_judged_by_their_own_names():
    clip = scored_clip(mixture="general", imported_scores={"koala.suitability": 2.0})
    assert decision_on(clip).reasons == ("koala.suitability: 2 < 2.5",)


def test_a_misspelt_limit_is_refused_with_the_choice():
    with pytest.raises(ValueError, match=r"'faces\.single' is none of faces\.single_share, faces"):
        Policy.model_validate({"limits": {"all": {"faces.single": {"min": 1}}}})
    limits = {"all": {"face.single_share": {"min": 1}, "koala.clarity": {}}}
    world = {"sources": [{"kind": "portrait-world", "num_clips": 1}]}
    with pytest.raises(
        ValueError, match=r"'face\.single_share' is of none of aesthetics, .* koala"
    ):
        DataConfig.model_validate(world | {"policy": {"limits": limits}})
    lines = {"kind": "jsonl", "manifests": ["m.jsonl"], "mixture": "general"}
    ours = {"sources": [lines], "policy": {"limits": {"all": {"ours.quality": {"min": 1}}}}}
    assert DataConfig.model_validate(ours).policy.limits["all"]["ours.quality"].min == 1


def test_an_absent_score_objects_to_nothing():
    absent = "absent: no weights for aesthetics"
    clip = scored_clip(scores={"aesthetics.laion": None}, scorers={"aesthetics": absent})
    assert decision_on(clip).status == "accepted"


def test_a_score_that_could_not_be_taken_rejects():
    clip = scored_clip(scores={"exposure.luma": None}, scorers={"exposure": "v1"})
    assert decision_on(clip).reasons == ("exposure.luma: could not be measured",)


def test_bars_are_cut_off_where_the_policy_says_so_and_the_rest_is_judged():
    bars = {"top": 0.1, "bottom": 0.1, "left": 0.0, "right": 0.0, "share": 0.2}
    scores = {f"letterbox.{name}": value for name, value in bars.items()}
    policy = LENIENT.model_copy(update={"crop_bars": True})
    decision = decision_on(scored_clip(scores=scores, height=100), policy)
    assert decision.status == "accepted"
    assert decision.clip.crop == (0, 10, 96, 90)
    assert (decision.clip.width, decision.clip.height) == (96, 80)
    inside = decision_on(scored_clip(scores=scores, height=100, crop=(4, 20, 100, 120)), policy)
    assert inside.clip.crop == (4, 30, 100, 110)
    small = decision_on(scored_clip(scores=scores, height=70), policy)
    assert "resolution: short side 54 < 64" in small.reasons


def test_the_same_file_is_kept_once_whoever_lists_it():
    clips = [scored_clip("a"), scored_clip("b", content_hash="a"), scored_clip("c")]
    for order in (clips, clips[::-1]):
        found = {d.clip.clip_id: d for d in decide(order, LENIENT, BUCKET)}
        assert found["b"].reasons == ("duplicate: of a by the same file",)
        assert found["a"].status == found["c"].status == "accepted"


def test_a_copy_in_colour_is_kept_before_a_grey_one():
    grey, colour = (
        hashed(name, np.arange(512) % 2, scores={"colour.mean": mean})
        for name, mean in (("a", 0.0), ("b", 0.3))
    )
    found = {d.clip.clip_id: d.reasons for d in decide([grey, colour], LENIENT, BUCKET)}
    assert found == {"a": ("duplicate: of b by pHash",), "b": ()}


def test_other_spans_and_crops_of_one_file_are_no_copies():
    film = {"source_id": "film", "uri": "u", "content_hash": "h"}
    clips = [
        scored_clip("a", **film),
        scored_clip("b", **film, start=60, stop=110),
        scored_clip("c", **film, crop=(0, 0, 90, 64)),
    ]
    assert {d.status for d in decide(clips, LENIENT, BUCKET)} == {"accepted"}


def test_the_larger_of_two_near_copies_is_kept():
    bits = np.random.default_rng(0).integers(0, 2, 512)
    near, far = bits.copy(), bits.copy()
    near[:40] ^= 1
    far[100:160] ^= 1
    clips = [
        hashed("small", bits),
        hashed("large", near, width=128),
        hashed("other", far, width=80),
    ]
    found = {d.clip.clip_id: d.reasons for d in decide(clips, LENIENT, BUCKET)}
    assert found == {"small": ("duplicate: of large by pHash",), "large": (), "other": ()}


def test_a_rejected_clip_does_not_take_its_copy_with_it():
    clips = [scored_clip("a", num_cuts=1, width=200), scored_clip("b", content_hash="a")]
    assert [d.status for d in decide(clips, LENIENT, BUCKET)] == ["rejected", "accepted"]


def test_no_copy_of_a_held_out_clip_is_accepted_however_good_it_is():
    rng = np.random.default_rng(0)
    bits, far = rng.integers(0, 2, (2, 512))
    near = bits.copy()
    near[:40] ^= 1
    held_out = [hashed("test", bits), hashed("film", far, start=10, stop=40)]
    clips = [
        hashed("near", near, width=800),
        hashed("moment", near, source_id="test"),
        hashed("cut", rng.integers(0, 2, 512), content_hash="film", start=39, stop=90),
        hashed("rest", rng.integers(0, 2, 512), content_hash="film", start=40, stop=90),
    ]
    found = {d.clip.clip_id: d.reasons for d in decide(clips, LENIENT, BUCKET, held_out=held_out)}
    assert found == {
        "near": ("duplicate: of test in the held-out clips by pHash",),
        "moment": ("duplicate: of test in the held-out clips by pHash",),
        "cut": ("duplicate: of film in the held-out clips by the same file",),
        "rest": (),
    }


def test_a_copy_of_a_held_out_clip_takes_no_other_clip_with_it():
    bits = np.random.default_rng(0).integers(0, 2, 512)
    test, near, farther = bits.copy(), bits.copy(), bits.copy()
    near[:40] ^= 1
    farther[:80] ^= 1
    clips = [hashed("near", near, width=800), hashed("farther", farther)]
    found = decide(clips, LENIENT, BUCKET, held_out=[hashed("test", test)])
    assert [d.status for d in found] == ["rejected", "accepted"]
    both = [hashed("test", test), hashed("twin", near)]  # copies of each other: both are held out
    assert {d.status for d in decide(clips, LENIENT, BUCKET, held_out=both)} == {"rejected"}


def test_held_out_embeddings_are_compared():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((9, 8)).astype(np.float16)
    model = {"scorers": {"embedding": "new"}}
    held_out = [
        scored_clip(f"{i}", blobs={"embedding": vector.tobytes()}, **model)
        for i, vector in enumerate(vectors)
    ]
    last = {"embedding": vectors[-1].tobytes()}
    clips = [scored_clip("copy", blobs=last, **model)]
    versions = {"embedding": "new"}
    (decision,) = decide(clips, LENIENT, BUCKET, versions=versions, held_out=held_out)
    assert decision.reasons == ("duplicate: of 8 in the held-out clips by embedding",)


def test_a_source_gives_so_many_clips_and_always_the_same():
    clips = [
        scored_clip(f"{i}", source_id="film", uri="u", start=50 * i, stop=50 * i + 48)
        for i in range(12)
    ]
    kept = {d.clip.clip_id for d in decide(clips, LENIENT, BUCKET) if d.status == "accepted"}
    again = {d.clip.clip_id for d in decide(clips[::-1], LENIENT, BUCKET) if not d.reasons}
    assert len(kept) == 8 and kept == again
    refused = [d for d in decide(clips, LENIENT, BUCKET) if d.reasons]
    assert {d.reasons for d in refused} == {("cap: film has more than 8 clips",)}


def test_a_clip_that_a_scorer_never_saw_is_not_accepted_and_takes_nobodys_place():
    bits = np.arange(64) % 2
    versions = {"aesthetic": "2", "safety": "absent: no weights"}
    unseen = hashed("a", bits, scorers={"aesthetic": "1"})
    seen = hashed("b", bits, scorers={"aesthetic": "2"})
    found = decide([unseen, seen], LENIENT, BUCKET, versions=versions)
    assert [decision.status for decision in found] == ["rejected", "accepted"]
    assert found[0].reasons == ("not scored yet: aesthetic",)


def test_numbers_in_reasons_are_written_as_python_writes_them():
    rng = np.random.default_rng(0)
    values = rng.uniform(-1, 1, 3000) * 10.0 ** rng.integers(-8, 9, 3000)
    values = [*values.tolist(), *(n / 8 for n in range(100)), 99999.5, 0.0, -0.0, float("inf")]
    db = Database()
    with db.named(numbers=pa.table({"x": values})):
        found = db.rows("SELECT format('{:.3g}', x), format('{:.2f}', x) FROM numbers")
    assert found == [(f"{x:.3g}", f"{x:.2f}") for x in values]


def test_a_score_that_is_no_number_is_beyond_no_limit():
    assert decision_on(scored_clip(scores={"text.area": float("nan")})).status == "accepted"
