"""Tables: what deciding on millions of clips costs, whose rows are made by a query."""

import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from data_shared import Row, be_part, run_part

from magicdistill.data_pipeline.config import Bucket, DataConfig, Measures, Policy
from magicdistill.data_pipeline.io.query import Database
from magicdistill.data_pipeline.ledger.columns import SLICE, slice_of
from magicdistill.data_pipeline.ledger.ledger import MERGED, Ledger
from magicdistill.data_pipeline.ledger.takedowns import Takedowns
from magicdistill.data_pipeline.rows import VIDEO_SCHEMA
from magicdistill.data_pipeline.scorers.black import Black
from magicdistill.data_pipeline.scorers.blur import Blur
from magicdistill.data_pipeline.scorers.exposure import Exposure
from magicdistill.data_pipeline.scorers.frozen import Frozen
from magicdistill.data_pipeline.scorers.letterbox import Letterbox
from magicdistill.data_pipeline.scorers.text import Text
from magicdistill.data_pipeline.selection.curation_state import CurationState
from magicdistill.data_pipeline.sources.folder import Folder

CLIPS_PER_FILM = 12
ROWS_PER_FILE = 1_000_000
NIGHT = 10_000
"""Rows that a later night adds."""
SCORERS = (Black(), Blur(), Exposure(), Frozen(), Letterbox(), Text())


def decisions_on_millions(folder: Path, count: int) -> list[Row]:
    """List, decide, decide again, and decide after a night that added few rows."""
    place = folder / f"{count}-rows"
    place.mkdir()
    (place / "count").write_text(str(count))
    parts = ("make", "decide", "decide", "night")
    found = [run_part(__file__, part, place) for part in parts]
    titles = ("(rows made by a query)", "list and decide", "again", f"after {NIGHT:,} new rows")
    return [
        {"name": f"{count:,} clips, {title}"} | part
        for title, part in zip(titles, found, strict=True)
    ]


def config() -> DataConfig:
    """Return the config whose policy decides."""
    source = Folder(path="/nowhere", license="none", mixture="general")
    return DataConfig(
        sources=(source,),
        bucket=Bucket(num_frames=129, height=544, width=960),
        measures=Measures(scorers=SCORERS),
        policy=Policy(max_clips_per_source=8),
    )


def video_columns(first: int, count: int) -> str:
    """Return the query of listed videos, as Koala-36M names them."""
    film = f"left(md5((i // {CLIPS_PER_FILM})::VARCHAR), 11)"
    scores = {"koala.clarity": "0.5 + r1 / 2", "koala.suitability": "2 + 3 * r2"}
    imported = ", ".join(f"'{score}': {value}" for score, value in scores.items())
    noise = ", ".join(f"(hash(i, {n}) % 100000) / 100000 AS r{n}" for n in range(1, 6))
    return (
        f"SELECT left(md5(i::VARCHAR), 20) AS video_id, concat('koala/', {film}) AS source_id, "
        f"concat('s3://bucket/koala/', {film}, '.mp4') AS uri, '' AS path, "
        "concat('10485760-', left(md5(i::VARCHAR), 16)) AS fingerprint, 'none' AS license, "
        "'general' AS mixture, false AS split_shots, concat('clip_', i) AS entry, "
        "4.0 * (i % 12) AS t0_s, 4.0 * (i % 12) + 5 AS t1_s, []::DOUBLE[] AS crop, "
        "[]::DOUBLE[] AS crop_frame, 1.0 AS time_scale, "
        "concat('A person walks along a street while cars pass by, number ', i) AS caption, "
        f"MAP {{{imported}}} AS imported_scores, '' AS fault, r1, r2, r3, r4, r5, i "
        f"FROM (SELECT i, {noise} FROM range({first}, {first + count}) AS r(i))"
    )


def listed(database: Database, count: int) -> Iterator[pa.Table]:
    """Yield the listing in tables, as sources do."""
    for first in range(0, count, 50_000):
        query = video_columns(first, min(50_000, count - first))
        table = database.table(f"FROM ({query}) ORDER BY i")
        yield table.select(VIDEO_SCHEMA.names).cast(VIDEO_SCHEMA)


def write_rows(database: Database, ledger: Path, first: int, count: int) -> None:
    """Write scored rows as merging leaves them."""
    measures = config().measures
    columns = [
        f"CASE WHEN r5 <= 0.99 THEN '{scorer.version}' END AS \"scorers.{scorer.kind}\""
        for scorer in SCORERS
    ]
    values = {
        "black.longest_s": "r1 * 0.55", "exposure.luma": "15 + r2 * 200",
        "frozen.longest_s": "r3 * 0.6", "letterbox.share": "r4 * 0.022", "text.area": "r5 * 0.022",
    }  # fmt: skip
    for number, scorer in enumerate(SCORERS):
        for score in scorer.SCORES:
            value = values.get(f"{scorer.kind}.{score}", f"r{number % 5 + 1}")
            columns.append(f'round({value}, 4)::DOUBLE AS "scores.{scorer.kind}.{score}"')
    query = (
        f"SELECT {slice_of('video_id')} AS {SLICE}, left(md5(video_id), 20) AS clip_id, video_id, "
        "source_id, uri, path, fingerprint, license, mixture, entry, time_scale, caption, "
        f"imported_scores, '{measures.version}' AS measures, 0 AS start, "
        "129 + (hash(i) % 100)::BIGINT AS stop, md5(concat('content', video_id)) AS content_hash, "
        "'pyav' AS decoder, 1280 AS width, CASE WHEN r1 < 0.05 THEN 480 ELSE 720 END AS height, "
        "24.0 AS fps, 230 AS num_frames_header, 230 - (r2 * 6)::BIGINT AS num_frames_decoded, "
        "CASE WHEN r3 > 0.98 THEN 1 ELSE 0 END AS num_cuts, r4 * 10 AS motion_px, "
        "CASE WHEN r5 > 0.99 THEN 'corrupt: no frames' ELSE '' END AS failure, "
        f"[]::BIGINT[] AS crop, {', '.join(columns)} FROM ({video_columns(first, count)})"
    )
    path = ledger / "scores" / f"{first:012d}{MERGED}"
    path.parent.mkdir(parents=True, exist_ok=True)
    database.write(f"{query} ORDER BY {SLICE}", path)


def make_rows(place: Path) -> Row:
    """Write a ledger that has every listed clip."""
    count, database = int((place / "count").read_text()), Database()
    for first in range(0, count, ROWS_PER_FILE):
        rows = min(ROWS_PER_FILE, count - first)
        write_rows(database, place / "data" / "ledger", first, rows)
    files = (place / "data").rglob("*.parquet")
    return {"bytes": sum(file.stat().st_size for file in files)}


def decide_rows(place: Path) -> Row:
    """List the videos and decide on their clips; nothing may be left to score."""
    count, database = int((place / "count").read_text()), Database()
    ledger = Ledger(place / "data" / "ledger", database)
    spent_s = _cpu_s()
    state = CurationState(config(), database, ledger, listed(database, count), Takedowns({}, {}))
    list_s, spent_s = _cpu_s() - spent_s, _cpu_s()
    assert not state.commit_faults() and not state.missing([])
    missing_s, spent_s = _cpu_s() - spent_s, _cpu_s()
    assert not state.lacking(SCORERS, hopeful=False).count()
    lacking_s, spent_s = _cpu_s() - spent_s, _cpu_s()
    state.judge(Ledger(database.folder / "temporary", database))
    judge_s, spent_s = _cpu_s() - spent_s, _cpu_s()
    selection = state.select()
    ledger.write_decisions("decisions", selection.judged.stored())
    millions = count / 1e6
    return selection.counts | {
        "list CPU s per million": list_s / millions,
        "missing CPU s per million": missing_s / millions,
        "lacking CPU s per million": lacking_s / millions,
        "decide CPU s per million": judge_s / millions,
        "write CPU s per million": (_cpu_s() - spent_s) / millions,
    }


def add_night(place: Path) -> Row:
    """Add a night's rows and decide again."""
    count = int((place / "count").read_text())
    write_rows(Database(), place / "data" / "ledger", count, NIGHT)
    (place / "count").write_text(str(count + NIGHT))
    return decide_rows(place)


def _cpu_s() -> float:
    return time.process_time()


PARTS = {"make": make_rows, "decide": decide_rows, "night": add_night}

if __name__ == "__main__":
    be_part(PARTS)
