import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from magicdistill.data_pipeline.config import Bucket, Measures, Policy
from magicdistill.data_pipeline.io.storage import write_parquet
from magicdistill.data_pipeline.ledger.ledger import DECISION_SCHEMA, Ledger
from magicdistill.data_pipeline.rows import (
    CLIP_SCHEMA,
    STORED,
    ClipRow,
    Video,
    clips_to_table,
    failed,
)
from magicdistill.data_pipeline.scorers.black import Black
from magicdistill.data_pipeline.scorers.exposure import Exposure
from magicdistill.data_pipeline.stages.run_scorers import versions_of
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


def contradicting() -> list[ClipRow]:
    """Return rows of one clip that do not agree, and rows that complete each other."""
    black, exposure = versions_of([Black()]), versions_of([Exposure()])
    lost = replace(make_clip(), failure="encode: crashed")
    both = {"black.share": 0.2, "exposure.luma": 7.0}
    mute = make_clip(50)
    return [
        make_clip(),
        lost,
        replace(lost, failure="encode: latents: not finite"),
        replace(make_clip(20), scores={"black.share": 0.1}, scorers=black),
        replace(make_clip(20), scores=both, scorers=black | exposure, decoder="pyav"),
        replace(make_clip(20), scores={"exposure.luma": 9.0}, scorers=exposure, decoder="decord"),
        mute,
        replace(mute, failure="scores: crashed", scorers=black),
        replace(mute, failure="scores: timed out", scorers=exposure),
    ]


def read(ledger: Ledger) -> dict[str, list[ClipRow]]:
    return scored(ledger, [VIDEO], MEASURES, SCORERS)


def test_what_is_read_does_not_depend_on_the_order_of_parts(tmp_path: Path):
    rows = contradicting()
    for first in (0, 3, 6):
        found = []
        for order in permutations(rows[first : first + 3]):
            folder = tmp_path / f"{first}-{len(found)}"
            for number, row in enumerate(order):
                write_parquet(clips_to_table([row]), folder / "scores" / f"{number}.parquet")
            found.append(read(Ledger(folder)))
        assert found == found[:1] * 6


@pytest.fixture
def many_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """Return a ledger of nine parts, where four are many and about three become one."""
    ledger = Ledger(tmp_path / "ledger")
    for row in contradicting():
        ledger.append([row])
    size = ledger.parts()[0].stat().st_size
    monkeypatch.setattr("magicdistill.data_pipeline.ledger.ledger.MAX_SMALL_PARTS", 4)
    monkeypatch.setattr("magicdistill.data_pipeline.ledger.ledger.MERGED_BYTES", size * 7 // 2)
    return ledger


def test_many_small_parts_become_few_and_say_the_same(many_parts: Ledger):
    before = read(many_parts)
    assert {clip.clip_id for clip in before["v"]} == {"c0", "c20", "c50"}
    assert many_parts.compact() == 9
    assert len(many_parts.parts()) == 3
    assert read(many_parts) == before
    assert many_parts.compact() == 0


def test_few_parts_and_large_ones_are_left_alone(
    many_parts: Ledger, monkeypatch: pytest.MonkeyPatch
):
    many_parts.compact()
    parts = many_parts.parts()
    monkeypatch.setattr("magicdistill.data_pipeline.ledger.ledger.MAX_SMALL_PARTS", 1)
    monkeypatch.setattr("magicdistill.data_pipeline.ledger.ledger.SMALL_PART_BYTES", 1)
    assert many_parts.compact() == 0
    assert many_parts.parts() == parts


class Killed(BaseException):
    """What kill -9 is to a process."""


def test_killed_at_any_point_a_merge_changes_nothing(
    many_parts: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before, folder = read(many_parts), tmp_path / "ledger" / "scores"
    originals = {part: part.read_bytes() for part in many_parts.parts()}
    num_steps = 12  # three parts appear, nine go
    for num_done in range(num_steps + 1):
        shutil.rmtree(folder)
        folder.mkdir()
        for part, content in originals.items():
            part.write_bytes(content)
        steps = iter(range(num_done))

        def dying(action: Callable[..., Any], steps: Iterator[int] = steps) -> Callable[..., Any]:
            def act(*args: Any, **options: Any) -> Any:
                if next(steps, None) is None:
                    raise Killed
                return action(*args, **options)

            return act

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying(os.replace))
            patch.setattr(Path, "unlink", dying(Path.unlink))
            if num_done < num_steps:
                with pytest.raises(Killed):
                    many_parts.compact()
            else:
                assert many_parts.compact() == 9
        assert read(many_parts) == before
        many_parts.compact()
        assert read(many_parts) == before
        assert len(many_parts.parts()) <= 4


def test_a_damaged_part_is_not_hidden_by_merging(many_parts: Ledger):
    part = many_parts.parts()[0]
    data = bytearray(part.read_bytes())
    data[data.index(b"file:///")] ^= 1
    part.write_bytes(bytes(data))
    with pytest.raises(OSError, match="CRC"):
        many_parts.compact()
    assert part.exists()


def test_a_reader_finds_what_is_merged_while_it_reads(
    many_parts: Ledger, monkeypatch: pytest.MonkeyPatch
):
    before, listed = read(many_parts), many_parts.parts()
    many_parts.compact()
    merged = many_parts.parts()
    listings = iter([listed])
    monkeypatch.setattr(many_parts, "parts", lambda: next(listings, merged))
    assert read(many_parts) == before
