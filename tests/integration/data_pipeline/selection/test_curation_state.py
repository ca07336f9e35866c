"""What is missing, hopeless, held out or taken down, asked of a ledger in parts of any size."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from magicdistill.data_pipeline.config import DataConfig, Limit, Measures, Policy
from magicdistill.data_pipeline.io.query import Database
from magicdistill.data_pipeline.ledger.ledger import Ledger
from magicdistill.data_pipeline.ledger.takedowns import Takedowns
from magicdistill.data_pipeline.rows import (
    ClipRow,
    Video,
    clips_from_table,
    failed,
    videos_from_table,
)
from magicdistill.data_pipeline.scorers.blur import Blur
from magicdistill.data_pipeline.scorers.exposure import Exposure
from magicdistill.data_pipeline.scorers.phash import PHash
from magicdistill.data_pipeline.selection.curation_state import CurationState
from magicdistill.data_pipeline.sources.folder import Folder
from magicdistill.data_pipeline.stages.run_scorers import versions_of
from tests.curation_tables import NOTHING, GivenVideos
from tests.scored_clips import scored_clip

SCORERS = (Exposure(), PHash())
MEASURES = Measures(scorers=SCORERS)
CONFIG = DataConfig(
    sources=(Folder(path="/nowhere", license="CC0", mixture="portrait"),),
    measures=MEASURES,
    policy=Policy(min_short_side=64, min_long_side=64, max_clips_per_source=2),
)
NUM_VIDEOS = 60
UNSCORED = [number for number in range(NUM_VIDEOS) if number % 7 == 0 and number % 11 != 10]


def video(number: int, source: str = "") -> Video:
    film = source or f"set/{number // 5}"
    return Video(f"v{number}", film, f"u{number}", "", "1-1", "l", "portrait")


def clip(number: int, start: int = 0, **changes: object) -> ClipRow:
    bits = np.random.default_rng(number).integers(0, 2, 512)
    scores = {"exposure.luma": 10.0 if number % 4 == 0 else 90.0, "exposure.clipped_share": 0.0}
    listed = video(number)
    found = scored_clip(
        f"c{number}-{start}",
        measures=MEASURES.version,
        start=start,
        stop=start + 48,
        content_hash=f"content {number}",
        scores=scores,
        scorers=versions_of(SCORERS),
        blobs={"phash": np.packbits(bits).tobytes()},
    )
    return replace(found, video=listed, **changes)


def state_of(
    ledger: Ledger,
    videos: Iterable[Video],
    config: DataConfig = CONFIG,
    gone: Takedowns = NOTHING,
    kept: Path | None = None,
    key: str | None = None,
) -> CurationState:
    lister = GivenVideos({key: videos})
    return CurationState(config, ledger.database, ledger, lister, gone, kept)


def judged(state: CurationState, *held_out: CurationState) -> list[tuple[str, str, tuple]]:
    database = state.clips.database if state._judged else state._db
    state.judge(Ledger(database.folder / "temporary", database), held_out)
    return [(d.clip.clip_id, d.status, d.reasons) for d in state.clips.decisions()]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Every video but each seventh has two clips; each eleventh cannot be read."""
    ledger = Ledger(tmp_path / "ledger", Database())
    for number in range(NUM_VIDEOS):
        if number % 11 == 10:
            ledger.append([failed(video(number), MEASURES.version, "corrupt: no frames")])
        elif number % 7:
            ledger.append([clip(number, 100), clip(number)])
    return ledger


def test_it_does_not_matter_in_how_many_parts_clips_are_judged(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
):
    videos = [video(number) for number in range(NUM_VIDEOS)]
    whole = judged(state_of(ledger, videos))
    assert {status for _, status, _ in whole} == {"accepted", "rejected", "failed"}
    assert any("cap: set/0 has more than 2 clips" in reasons for _, _, reasons in whole)
    monkeypatch.setattr("magicdistill.data_pipeline.ledger.scored_clips.ROWS_AT_ONCE", 40)
    monkeypatch.setattr("magicdistill.data_pipeline.selection.listed_videos.FILE_ROWS", 25)
    state = state_of(ledger, videos)
    assert judged(state) == whole
    selection = state.select()
    assert selection.num_unscored == len(UNSCORED)
    assert selection.num_clips == len(whole)
    ledger.compact()
    assert judged(state_of(ledger, videos)) == whole


def test_videos_without_clips_come_in_the_order_of_the_listing(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("magicdistill.data_pipeline.selection.listed_videos.FILE_ROWS", 9)
    order = np.random.default_rng(0).permutation(NUM_VIDEOS)
    videos = [video(int(number)) for number in order]
    videos[3] = replace(videos[3], fingerprint="2-2")  # was replaced since
    unusable = replace(video(99), fault="missing file")
    first, second = (state_of(ledger, some) for some in ([*videos, unusable], videos))
    missing = [v for v in videos if int(v.video_id[1:]) in UNSCORED or v.fingerprint == "2-2"]
    assert first.missing([]) == len(missing)
    found = [v for table in first.missing_videos() for v in videos_from_table(table)]
    assert found == missing
    assert second.missing([first]) == 0
    assert (first.commit_faults(), first.commit_faults()) == (1, 0)


def ids_of(state: CurationState, *scorers: object, hopeful: bool = False) -> Sequence[str]:
    tables = state.lacking(scorers, hopeful=hopeful).tables()  # type: ignore[arg-type]
    return [row.clip_id for table in tables for row in clips_from_table(table)]


def test_only_hopeful_clips_go_to_a_costly_scorer_and_take_what_they_have_along(ledger: Ledger):
    state = state_of(ledger, [video(1), video(4), video(10)])
    assert ids_of(state, *SCORERS) == []
    assert ids_of(state, Blur()) == ["c1-0", "c1-100", "c4-0", "c4-100"]
    assert ids_of(state, Blur(), hopeful=True) == ["c1-0", "c1-100"]
    (table,) = state.lacking([Blur()], hopeful=True).tables()
    assert clips_from_table(table)[0] == clip(1)


def test_a_copy_of_what_another_config_keeps_is_rejected_if_one_version_saw_both(ledger: Ledger):
    twin = clip(1, 0, clip_id="twin", content_hash="else")
    ledger.append([replace(twin, video=video(100, "elsewhere"))])
    training = state_of(ledger, [video(100, "elsewhere")])
    held_out = state_of(ledger, [video(1)])
    judged(held_out)
    reason = "duplicate: of set/0 in the held-out clips by pHash"
    assert judged(training, held_out) == [("twin", "rejected", (reason,))]
    assert training.num_incomparable([held_out]) == {}
    unhashed = CONFIG.model_copy(update={"measures": Measures(scorers=SCORERS[:1])})
    other = state_of(ledger, [video(1)], unhashed)
    judged(other)
    assert training.num_incomparable([other]) == {"phash": 2}


def test_what_was_taken_down_fails_by_name_and_by_content(ledger: Ledger):
    gone = Takedowns({"set/0": "2026-01-02"}, {"content 6": "film"})
    state = state_of(ledger, [video(1), video(6)], gone=gone)
    assert state.listing.faults() == {"set": {"takedown": 1}}
    same = "takedown: same content as film"
    assert judged(state) == [("c6-0", "failed", (same,)), ("c6-100", "failed", (same,))]


def test_scores_of_the_listing_go_along_whatever_file_a_video_is_in(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("magicdistill.data_pipeline.selection.listed_videos.FILE_ROWS", 4)
    odd = {"b.\"z'": 0.0, "A.x": 9.0, "a.^x": 9.0}
    scores = [{}, {"a.x": 1.5}, {"a.y": 2.0, "a.x": 3.0, "a.X": 1.0}, odd, {}, {"a.x": 7.0}] * 5
    videos = [replace(video(number), imported_scores=found) for number, found in enumerate(scores)]
    below = CONFIG.policy.model_copy(update={"limits": {"all": {"a.x": Limit(max=2.0)}}})
    state = state_of(ledger, videos, CONFIG.model_copy(update={"policy": below}))
    against = {clip_id: reasons for clip_id, _, reasons in judged(state)}
    assert against["c2-0"] == ("a.x: 3 > 2",) and against["c5-0"] == ("a.x: 7 > 2",)
    found = {d.clip.video.video_id: d.clip.video.imported_scores for d in state.clips.decisions()}
    assert found == {v.video_id: v.imported_scores for v in videos if v.video_id in found}
    assert {"v1", "v2", "v3"} <= found.keys()


def never_asked() -> Iterator[Video]:
    raise AssertionError("the videos are listed again")
    yield


def test_a_night_with_nothing_new_neither_lists_nor_decides_again(ledger: Ledger, tmp_path: Path):
    kept, videos = tmp_path / "tables", [video(number) for number in range(NUM_VIDEOS)]
    first = state_of(ledger, videos, kept=kept, key="as before")
    decided = judged(first)
    selected, made_as = first.select(), first.clips.made_as
    night = Ledger(tmp_path / "ledger", Database())
    again = state_of(night, never_asked(), kept=kept, key="as before")
    assert judged(again) == decided and again.clips.made_as == made_as
    counts = again.select()
    assert (counts.num_videos, counts.num_unscored) == (NUM_VIDEOS, selected.num_unscored)
    assert again.missing([]) == len(UNSCORED)
    missing = [v for table in again.missing_videos() for v in videos_from_table(table)]
    assert missing == [videos[number] for number in UNSCORED]


def score_another(ledger: Ledger) -> None:
    ledger.append([clip(7)])


def fail_for_now(ledger: Ledger) -> None:
    database = ledger.database
    Ledger(database.folder / "temporary", database).append(
        [failed(video(7), MEASURES.version, "unreachable: no answer")]
    )


def test_what_may_change_a_decision_makes_it_anew(ledger: Ledger, tmp_path: Path):
    kept, videos = tmp_path / "tables", [video(number) for number in range(20)]
    looser = CONFIG.policy.model_copy(update={"max_clips_per_source": 3})
    held_out = state_of(ledger, [video(1)], kept=kept)
    judged(held_out)
    changes: dict[str, Any] = {
        "a video": {"videos": videos[:-1]},
        "the policy": {"config": CONFIG.model_copy(update={"policy": looser})},
        "a takedown": {"gone": Takedowns({}, {"content 6": "film"})},
        "held-out clips": {"held_out": [held_out]},
        "a row of the ledger": {"act": score_another},
        "a failure that may pass": {"act": fail_for_now},
    }
    seen = {made_as(ledger, kept, videos)}
    assert {made_as(ledger, kept, videos)} == seen
    for what, change in changes.items():
        options = {"videos": videos} | change
        if act := options.pop("act", None):
            act(ledger)
        name = made_as(ledger, kept, **options)
        assert name not in seen, what
        seen.add(name)


def made_as(
    ledger: Ledger,
    kept: Path,
    videos: Sequence[Video],
    held_out: Sequence[CurationState] = (),
    **options: Any,
) -> str:
    state = state_of(ledger, videos, kept=kept, **options)
    judged(state, *held_out)
    return state.clips.made_as


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_after_any_nights_what_is_taken_over_equals_what_is_made_anew(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr("magicdistill.data_pipeline.selection.changes.MAX_SHARE", 0.7)
    monkeypatch.setattr("magicdistill.data_pipeline.selection.listed_videos.FILE_ROWS", 25)
    monkeypatch.setattr("magicdistill.data_pipeline.selection.listed_videos.MAX_SMALL", 2)
    monkeypatch.setattr("magicdistill.data_pipeline.ledger.ledger.MAX_SMALL_PARTS", 8)
    kept, random = tmp_path / "tables", np.random.default_rng(seed)
    for number in range(0, NUM_VIDEOS, 7):  # so that the first night leaves nothing to do
        if number % 11 != 10:
            ledger.append([clip(number)])
    parts = {"first": [video(number) for number in range(NUM_VIDEOS)]}
    taken_over = 0
    for night in range(5):
        here = Ledger(tmp_path / "ledger", Database())
        state, fresh = (nightly_state(here, parts, *own) for own in ([kept], []))
        assert state.commit_faults() == 0 == fresh.commit_faults()
        assert state.missing([]) == fresh.missing([])
        assert [*map(names, state.missing_videos())] == [*map(names, fresh.missing_videos())]
        for hopeful in (False, True):
            some = ids_of(state, *SCORERS, hopeful=hopeful)
            assert some == ids_of(fresh, *SCORERS, hopeful=hopeful)
        for table in fresh.missing_videos():
            here.append([clip(int(name[1:])) for name in names(table)])
        assert judged(state) == judged(fresh)
        assert state.select().counts == fresh.select().counts
        taken_over += state.clips.is_taken_over
        event = random.integers(5) if night else 0
        first = NUM_VIDEOS + 8 * night
        if event == 0:
            parts[f"night {night}"] = [video(number) for number in range(first, first + 8)]
        elif event == 1:
            again = int(random.integers(NUM_VIDEOS))
            here.append([clip(again, 200, content_hash=f"content {random.integers(60)}")])
        elif event == 2:
            unseen = clip(int(random.integers(NUM_VIDEOS)), 300, scores={}, scorers={}, blobs={})
            here.append([unseen])
        else:
            changed = next(reversed(parts))
            parts[f"{changed} again"] = [
                replace(v, mixture="general", imported_scores={"a.x": 1.0})
                for v in parts.pop(changed)[1:]
            ]
        here.compact()
    assert taken_over > 1


def nightly_state(ledger: Ledger, parts: Any, kept: Path | None = None) -> CurationState:
    lister = GivenVideos(dict(parts))
    return CurationState(CONFIG, ledger.database, ledger, lister, NOTHING, kept)


def names(table: Any) -> list[str]:
    return table["video_id"].to_pylist()
