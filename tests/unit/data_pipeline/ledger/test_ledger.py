from dataclasses import fields, replace
from pathlib import Path

import pyarrow as pa

from magicdistill.data_pipeline.config import Bucket, Measures, Policy
from magicdistill.data_pipeline.io.storage import remove, write_parquet
from magicdistill.data_pipeline.ledger.ledger import DECISION_SCHEMA, MAX_SMALL_PARTS, Ledger
from magicdistill.data_pipeline.rows import (
    CLIP_SCHEMA,
    STORED,
    ClipRow,
    Video,
    failed,
)
from magicdistill.data_pipeline.scorers.black import Black
from magicdistill.data_pipeline.scorers.exposure import Exposure
from tests.curation_tables import judged_clips, scored

VIDEO = Video("v", "s", "file:///v.mp4", "/v.mp4", "1-1", "l", "portrait", False)
MEASURES = Measures().version
SCORERS = (Black(), Exposure())


def make_clip(start: int = 0) -> ClipRow:
    failure = failed(VIDEO, MEASURES, "")
    return replace(failure, clip_id=f"c{start}", start=start, stop=start + 9, motion_px=None)


def test_rows_come_back_equal_in_the_order_of_the_video(tmp_path: Path):
    clips = [make_clip(20), make_clip(0)]
    Ledger(tmp_path).append(clips)
    assert scored(Ledger(tmp_path), [VIDEO], MEASURES) == {"v": clips[::-1]}


def test_a_row_has_a_column_for_every_field_of_the_clip():
    own = {f.name for f in fields(ClipRow)} - {"video"}
    assert own | set(STORED) == set(CLIP_SCHEMA.names)


def test_a_ledger_of_any_age_is_read_by_the_names_of_its_columns(tmp_path: Path):
    texts = ("clip_id", "video_id", "source_id", "uri", "path", "fingerprint", "license")
    columns: dict[str, list[object]] = {name: [name] for name in (*texts, "measures", "caption")}
    columns |= {"mixture": ["anime"], "start": [3], "stop": [9], "time_scale": [1.25]}
    columns["crop"] = [[0, 2, 64, 66]]
    write_parquet(pa.table(columns), tmp_path / "scores" / "old.parquet")
    (clip,) = Ledger(tmp_path).find(["clip_id"])
    video = Video("video_id", *texts[2:], "anime", time_scale=1.25, caption="caption")
    crop = (0, 2, 64, 66)
    assert clip == ClipRow("clip_id", video, "measures", start=3, stop=9, crop=crop)


def test_a_changed_file_or_other_measures_count_as_not_scored(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.append([make_clip()])
    assert scored(ledger, [replace(VIDEO, fingerprint="2-2")], MEASURES) == {}
    assert scored(ledger, [VIDEO], Measures(motion_fps=5).version) == {}
    assert scored(ledger, [], MEASURES) == {}


def test_a_clip_has_the_path_and_the_address_of_the_present_listing(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.append([make_clip()])
    moved = replace(VIDEO, path="/moved/v.mp4", uri="file:///moved/v.mp4")
    (clip,) = scored(ledger, [moved], MEASURES)["v"]
    assert (clip.video.path, clip.video.uri) == (moved.path, moved.uri)


def test_a_later_failure_stays(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.append([replace(make_clip(), failure="encode: crashed")])
    ledger.append([make_clip()])
    assert scored(ledger, [VIDEO], MEASURES)["v"][0].failure == "encode: crashed"


def test_what_a_killed_writer_left_is_ignored(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.append([make_clip()])
    (tmp_path / "scores" / ".part.parquet.17.tmp").write_bytes(b"half a fi")
    assert len(scored(ledger, [VIDEO], MEASURES)) == 1


def test_decisions_are_stored_with_their_reasons(tmp_path: Path):
    import pyarrow.parquet as pq

    clips = judged_clips([replace(make_clip(), failure="empty file")], Policy(), Bucket())
    path = Ledger(tmp_path).write_decisions("now", clips.stored())
    assert pq.read_table(path).to_pylist() == [
        {"clip_id": "c0", "source_id": "s", "status": "failed", "reasons": ["empty file"]}
    ]


def test_decisions_are_written_once_for_each_time_that_they_are_made(tmp_path: Path):
    ledger = Ledger(tmp_path)
    batches = [pa.RecordBatch.from_pylist([], schema=DECISION_SCHEMA)]
    path = ledger.write_decisions("now", iter(batches), "first")
    written = path.stat().st_mtime_ns
    ledger.write_decisions("now", iter(batches), "first")
    assert path.stat().st_mtime_ns == written
    for made_as in ("second", ""):
        ledger.write_decisions("now", iter(batches), made_as)
        assert path.stat().st_mtime_ns > written
        written = path.stat().st_mtime_ns
    path.write_bytes(b"damaged")
    ledger.write_decisions("now", iter(batches), "")
    assert path.read_bytes().startswith(b"PAR1")


def test_a_ledger_says_what_is_new_since_and_where_rows_may_be_lost(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.append([make_clip(0)])
    before = ledger.states()
    assert ledger.changed_since(before) == []
    ledger.append([make_clip(1)])
    (new,) = ledger.changed_since(before) or []
    assert new.name not in before
    for number in range(2 * MAX_SMALL_PARTS):
        ledger.append([make_clip(2 + number)])
        ledger.compact()
    assert len(ledger.parts()) < MAX_SMALL_PARTS
    assert ledger.changed_since(before) == ledger.parts()
    now = ledger.states()
    remove(ledger.parts()[0])
    assert ledger.changed_since(now) is None
