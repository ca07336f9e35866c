"""Scores are kept per scorer: what one of them makes anew leaves the others alone."""

import json
from dataclasses import replace
from pathlib import Path

from magicdistill.data_pipeline.config import Measures
from magicdistill.data_pipeline.ledger.ledger import Ledger
from magicdistill.data_pipeline.rows import ClipRow, Video, failed
from magicdistill.data_pipeline.scorers.aesthetics import Aesthetics
from magicdistill.data_pipeline.scorers.base import Scorer
from magicdistill.data_pipeline.scorers.black import Black
from magicdistill.data_pipeline.scorers.exposure import Exposure
from magicdistill.data_pipeline.stages.run_scorers import lacking, versions_of
from tests.curation_tables import scored

VIDEO = Video("v", "s", "file:///v.mp4", "/v.mp4", "1-1", "l", "portrait", False)
MEASURES = Measures().version
CLIP = replace(failed(VIDEO, MEASURES, ""), clip_id="c", stop=48)


def seen_by(*scorers: Scorer, value: float = 1.0, **changes: object) -> ClipRow:
    names = [f"{scorer.kind}.{name}" for scorer in scorers for name in scorer.SCORES]
    scores = dict.fromkeys(names, value)
    return replace(CLIP, scores=scores, scorers=versions_of(scorers), **changes)


def read(ledger: Ledger, *scorers: Scorer) -> ClipRow:
    (clip,) = scored(ledger, [VIDEO], MEASURES, scorers)["v"]
    return clip


def test_rows_of_a_clip_are_brought_together(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.append([CLIP])
    ledger.append([seen_by(Black(), value=0.0)])
    ledger.append([seen_by(Exposure(), value=99.0, blobs={"exposure": b"x"})])
    clip = read(ledger, Black(), Exposure())
    assert clip.scores == {
        "black.longest_s": 0,
        "black.share": 0,
        "exposure.luma": 99,
        "exposure.clipped_share": 99,
    }
    assert clip.blobs == {"exposure": b"x"}
    assert read(ledger).scores == {}


def test_what_a_file_says_of_itself_is_kept_whatever_scorers_are_wanted(tmp_path: Path):
    ledger = Ledger(tmp_path)
    row = seen_by(Black(), value=0.0)
    ledger.append([replace(row, scores=row.scores | {"video.hdr": 1.0}, frame_checksums="00ff")])
    assert read(ledger).scores == {"video.hdr": 1}
    assert read(ledger, Black()).scores == row.scores | {"video.hdr": 1}
    assert read(ledger).frame_checksums == "00ff"


def test_only_a_changed_scorer_has_to_look_again(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.append([seen_by(Black(), Exposure())])
    other = Exposure(short_side=99)
    assert lacking(read(ledger, Black(), Exposure()), versions_of([Black(), Exposure()])) == []
    clip = read(ledger, Black(), other)
    assert lacking(clip, versions_of([Black(), other])) == ["exposure"]
    assert "exposure.luma" not in clip.scores
    ledger.append([seen_by(other, value=3.0)])
    assert read(ledger, Black(), other).scores["exposure.luma"] == 3
    assert read(ledger, Black(), Exposure()).scores["exposure.luma"] == 1


def test_scores_outlive_another_search_for_clips(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.append([seen_by(Black(), value=0.0)])
    ledger.append([replace(CLIP, measures="other")])
    (clip,) = scored(ledger, [VIDEO], "other", [Black()])["v"]
    assert clip.scores["black.share"] == 0


def test_scores_of_a_replaced_file_are_not_taken_over(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.append([seen_by(Black(), video=replace(VIDEO, fingerprint="0-0"))])
    ledger.append([CLIP])
    assert read(ledger, Black()).scores == {}


def test_an_absent_scorer_gives_null_with_its_reason_and_asks_for_nothing(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.append([seen_by(Black())])
    clip = read(ledger, Black(), Aesthetics())
    assert clip.scores["aesthetics.laion"] is None
    assert clip.scorers["aesthetics"] == "absent: no weights for aesthetics"
    assert lacking(clip, versions_of([Black(), Aesthetics()])) == []


def test_a_clip_that_scorers_failed_on_is_tried_again_by_others_only(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.append([CLIP])
    ledger.append([seen_by(Exposure(), failure="scores: crashed with SIGSEGV (2 attempts)")])
    assert read(ledger, Exposure()).failure.startswith("scores: crashed")
    assert read(ledger, Exposure(short_side=99)).failure == ""
    assert read(ledger).failure == ""


def test_model_version_and_preprocessing_stand_beside_the_scores(tmp_path: Path):
    Ledger(tmp_path).describe([Black(), Aesthetics()])
    (file,) = (tmp_path / "scorers").iterdir()
    described = json.loads(file.read_text())
    assert file.name == f"black-{Black().version}.json"
    assert described["model"] == "FFmpeg blackdetect's rule"
    assert described["settings"]["sampling_fps"] == 8
