from dataclasses import replace
from pathlib import Path

from magicdistill.data_pipeline.clips import ClipRow, Video, failed
from magicdistill.data_pipeline.config import Bucket, Measures, Policy
from magicdistill.data_pipeline.ledger import Ledger
from magicdistill.data_pipeline.policy import decide

VIDEO = Video("v", "s", "file:///v.mp4", "/v.mp4", "1-1", "l", "portrait", False)
MEASURES = Measures().version


def make_clip(start: int = 0) -> ClipRow:
    failure = failed(VIDEO, MEASURES, "")
    return replace(failure, clip_id=f"c{start}", start=start, stop=start + 9, motion_px=None)


def test_rows_come_back_equal_in_the_order_of_the_video(tmp_path: Path):
    clips = [make_clip(20), make_clip(0)]
    Ledger(tmp_path).append(clips)
    assert Ledger(tmp_path).scored([VIDEO], MEASURES) == {"v": clips[::-1]}


def test_a_changed_file_or_other_measures_count_as_not_scored(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.append([make_clip()])
    assert ledger.scored([replace(VIDEO, fingerprint="2-2")], MEASURES) == {}
    assert ledger.scored([VIDEO], Measures(motion_fps=5).version) == {}
    assert ledger.scored([], MEASURES) == {}


def test_a_clip_has_the_path_and_the_address_of_the_present_listing(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.append([make_clip()])
    moved = replace(VIDEO, path="/moved/v.mp4", uri="file:///moved/v.mp4")
    (clip,) = ledger.scored([moved], MEASURES)["v"]
    assert (clip.path, clip.uri) == (moved.path, moved.uri)


def test_a_later_failure_stays(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.append([replace(make_clip(), failure="encode: crashed")])
    ledger.append([make_clip()])
    assert ledger.scored([VIDEO], MEASURES)["v"][0].failure == "encode: crashed"


def test_what_a_killed_writer_left_is_ignored(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.append([make_clip()])
    (tmp_path / "scores" / ".part.parquet.17.tmp").write_bytes(b"half a fi")
    assert len(ledger.scored([VIDEO], MEASURES)) == 1


def test_decisions_are_stored_with_their_reasons(tmp_path: Path):
    import pyarrow.parquet as pq

    decisions = decide([replace(make_clip(), failure="empty file")], Policy(), Bucket())
    path = Ledger(tmp_path).write_decisions("now", decisions)
    assert pq.read_table(path).to_pylist() == [
        {"clip_id": "c0", "source_id": "s", "status": "failed", "reasons": ["empty file"]}
    ]
