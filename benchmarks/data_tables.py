"""Tables: what listing and deciding on millions of clips cost, whose rows are made by a query."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_shared import Row, be_part, quiet, run_part

from magicdistill.data_pipeline.config import Bucket, DataConfig, Limit, Measures, Policy
from magicdistill.data_pipeline.io.kept_tables import TABLES
from magicdistill.data_pipeline.io.listings import SCHEMA, keep_listing
from magicdistill.data_pipeline.io.query import Database, text
from magicdistill.data_pipeline.ledger.columns import SLICE, slice_of
from magicdistill.data_pipeline.ledger.ledger import MERGED, Ledger
from magicdistill.data_pipeline.ledger.takedowns import Takedowns
from magicdistill.data_pipeline.pipeline import Curator
from magicdistill.data_pipeline.reports.curation_report import write_report
from magicdistill.data_pipeline.scorers.black import Black
from magicdistill.data_pipeline.scorers.blur import Blur
from magicdistill.data_pipeline.scorers.exposure import Exposure
from magicdistill.data_pipeline.scorers.frozen import Frozen
from magicdistill.data_pipeline.scorers.letterbox import Letterbox
from magicdistill.data_pipeline.scorers.text import Text
from magicdistill.data_pipeline.selection.curation_state import CurationState
from magicdistill.data_pipeline.sources.base import LISTINGS
from magicdistill.data_pipeline.sources.data_sets.koala import Koala
from magicdistill.data_pipeline.sources.listing import SourceLister
from magicdistill.data_pipeline.sources.stores import Store

CLIPS_PER_FILM = 12
FILMS_PER_MISSING = 50
ROWS_PER_FILE = 1_000_000
NIGHT = 10_000
"""Rows that a later night adds."""
STORE = "s3://bucket/koala"
FILMS = "films"
SCORERS = (Black(), Blur(), Exposure(), Frozen(), Letterbox(), Text())
CAPTION = "A person walks along a street while cars pass by, number "


def film_of(row: str) -> str:
    """Return the expression of the name of a row's film."""
    return f"left(md5(({row} // {CLIPS_PER_FILM})::VARCHAR), 11)"


def decisions_on_millions(folder: Path, count: int) -> Iterator[Row]:
    """List and ingest, decide, decide by another policy, and the nights after."""
    place = folder / f"{count}-rows"
    place.mkdir()
    (place / "count").write_text(str(count))
    parts = {
        "make": "(manifest and listing of the bucket, made by a query)",
        "ingest": "list and ingest",
        "know": "(scores made by a query)",
        "decide": "decide",
        "another": "decide by another policy",
        "decide again": "a night with nothing new",
        "more": f"a night with {NIGHT:,} new rows",
        "report": "the report's page",
    }
    for part, title in parts.items():
        found = run_part(__file__, part.partition(" ")[0], place)
        yield {"name": f"{count:,} clips, {title}"} | found


def config(place: Path, policy: Policy | None = None) -> DataConfig:
    """Return the config whose policy decides; the bucket's listing is never too old for it.

    The films lie in the place itself, if it has a folder of them.
    """
    manifests = tuple(map(str, sorted((place / "manifests").iterdir())))
    films = place / FILMS
    store = Store(path=str(films) if films.is_dir() else STORE, holds="videos")
    source = Koala(manifests=manifests, store=store, listing_max_age_h=1e6)
    return DataConfig(
        sources=(source,),
        bucket=Bucket(num_frames=129, height=544, width=960),
        measures=Measures(scorers=SCORERS),
        policy=policy or Policy(max_clips_per_source=8),
    )


def make_rows(place: Path) -> Row:
    """Write a manifest like Koala-36M's, and the listing of a bucket with most of its films."""
    count, database = int((place / "count").read_text()), Database()
    for first in range(0, count, ROWS_PER_FILE):
        write_manifest(database, place, first, min(ROWS_PER_FILE, count - first))
    film = film_of("i")
    films = database.table(
        f"SELECT concat({film}, '.mp4') AS name, concat('10485760-', md5({film})) AS state "
        f"FROM range(0, {count + NIGHT}, {CLIPS_PER_FILM}) AS r(i) "
        f"WHERE i // {CLIPS_PER_FILM} % {FILMS_PER_MISSING} > 0 ORDER BY name"
    )
    keep_listing(films.cast(SCHEMA), STORE, place / "data" / "clips" / LISTINGS, time.time())
    return {"bytes": _bytes(place / "manifests")}


def write_manifest(database: Database, place: Path, first: int, count: int) -> None:
    """Write one file of the manifest."""
    film = film_of("i")
    score = "(hash(i, {}) % 100000) / 100000"
    start = f"(4 * (i % {CLIPS_PER_FILM}))"
    path = place / "manifests" / f"{first:012d}.csv"
    path.parent.mkdir(exist_ok=True)
    database.run(
        f"COPY (SELECT concat({film}, '_', i % {CLIPS_PER_FILM}) AS \"videoID\", "
        f"concat('https://www.youtube.com/watch?v=', {film}) AS url, "
        f"format('[''0:00:{{:02d}}.{{:03d}}'', ''0:00:{{:02d}}.000'']', {start}, i % 1000, "
        f"{start} + 6) AS timestamp, concat({text(CAPTION)}, i) AS caption, "
        f"5 * {score.format(1)} AS matching_score, 3 + 3 * {score.format(2)} AS aesthetic_score, "
        f"10 * {score.format(3)} AS motion_score, 0.5 + {score.format(4)} / 2 AS clarity_score, "
        f"2 + 3 * {score.format(5)} AS video_training_suitability_score "
        f"FROM range({first}, {first + count}) AS r(i)) TO {text(path)} (FORMAT csv, HEADER)"
    )


def state_of(place: Path, database: Database) -> CurationState:
    """Return the state of the config, with the listing that was kept."""
    own, root = config(place), place / "data"
    return CurationState(
        own,
        database,
        Ledger(root / "ledger", database),
        SourceLister(own.sources, root / "clips"),
        Takedowns.load(root / "ledger"),
        kept=root / TABLES,
    )


def know_rows(place: Path, first: int = 0, luma: str = "15 + r2 * 200") -> Row:
    """Write scored rows, as merging leaves them, of the listed videos from the first one on.

    The luma is an expression of r1 to r5, uniform noises between 0 and 1.
    """
    database = Database()
    state = state_of(place, database)
    for listed, ordinals in state.listing.ranges:
        written = place / "data" / "ledger" / "scores"
        written.mkdir(parents=True, exist_ok=True)
        path = written / f"{first}-{len([*written.iterdir()]):06d}{MERGED}"
        wanted = f"(FROM {listed} WHERE {ordinals} AND ordinal >= {first} AND fault = '')"
        if database.value(f"SELECT count(*) FROM {wanted}"):
            database.write(f"{scored(wanted, luma)} ORDER BY {SLICE}", path)
    return {"bytes": _bytes(place / "data" / "ledger")}


def scored(videos: str, luma: str) -> str:
    """Return the query of scored rows of videos."""
    measures = Measures(scorers=SCORERS)
    columns = [
        f"CASE WHEN r5 <= 0.99 THEN '{scorer.version}' END AS \"scorers.{scorer.kind}\""
        for scorer in SCORERS
    ]
    values = {
        "black.longest_s": "r1 * 0.55", "exposure.luma": luma,
        "frozen.longest_s": "r3 * 0.6", "letterbox.share": "r4 * 0.022", "text.area": "r5 * 0.022",
    }  # fmt: skip
    for number, scorer in enumerate(SCORERS):
        for score in scorer.SCORES:
            value = values.get(f"{scorer.kind}.{score}", f"r{number % 5 + 1}")
            columns.append(f'round({value}, 4)::DOUBLE AS "scores.{scorer.kind}.{score}"')
    noise = ", ".join(f"(hash(ordinal, {n}) % 100000) / 100000 AS r{n}" for n in range(1, 6))
    return (
        f"SELECT {slice_of('video_id')} AS {SLICE}, left(md5(video_id), 20) AS clip_id, video_id, "
        "source_id, uri, path, fingerprint, license, mixture, entry, time_scale, caption, "
        f"imported_scores, '{measures.version}' AS measures, 0 AS start, "
        "129 + (hash(ordinal) % 100)::BIGINT AS stop, md5(concat('content', video_id)) AS "
        "content_hash, 'pyav' AS decoder, 1280 AS width, "
        "CASE WHEN r1 < 0.05 THEN 480 ELSE 720 END AS height, "
        "24.0 AS fps, 230 AS num_frames_header, 230 - (r2 * 6)::BIGINT AS num_frames_decoded, "
        "CASE WHEN r3 > 0.98 THEN 1 ELSE 0 END AS num_cuts, r4 * 10 AS motion_px, "
        "CASE WHEN r5 > 0.99 THEN 'corrupt: no frames' ELSE '' END AS failure, "
        f"[]::BIGINT[] AS crop, {', '.join(columns)} FROM (SELECT *, {noise} FROM {videos})"
    )


def ingest_rows(place: Path) -> Row:
    """List the manifest, and commit a failed row for each clip of a missing film."""
    return _stages(place, None)


def decide_rows(place: Path) -> Row:
    """Do what a night does: list, find what is missing, decide; nothing may be left to score."""
    return _stages(place, config(place).policy)


def decide_by_another_policy(place: Path) -> Row:
    """Do the same by limits that no run before had."""
    brighter = Limit(min=40)
    policy = Policy(max_clips_per_source=6, limits={"all": {"exposure.luma": brighter}})
    return _stages(place, policy)


def add_night(place: Path) -> Row:
    """Add a night's manifest and scores, and decide again."""
    count, database = int((place / "count").read_text()), Database()
    write_manifest(database, place, count, NIGHT)
    (place / "count").write_text(str(count + NIGHT))
    found: Row = {}
    _measured(found, "list", count, lambda: state_of(place, database))
    know_rows(place, first=count)
    return decide_rows(place) | found


def report_rows(place: Path) -> Row:
    """Write the page of the last decisions, without pictures, as there are no films."""
    count, found = int((place / "count").read_text()), {}
    curator = Curator([config(place)], place / "data", quiet)
    (selection,) = curator.decide()
    path, facts = place / "report.html", {"recipe": "benchmark"}
    _measured(
        found,
        "report",
        count,
        lambda: write_report(path, {"data": selection}, place / "data", facts, curator.timings),
    )
    return found | {"bytes": path.stat().st_size}


def _stages(place: Path, policy: Policy | None) -> Row:
    count, found = int((place / "count").read_text()), {}
    own, root = config(place, policy), place / "data"
    curator = _measured(found, "list", count, lambda: Curator([own], root, quiet))
    _measured(found, "ingest", count, curator.ingest)
    if policy is None:
        return found
    _measured(found, "find what is missing", count, curator.score)
    assert not curator.timings, "scores are missing"
    (selection,) = _measured(found, "decide", count, curator.decide)
    assert not selection.num_unscored
    return found | selection.counts


def _measured(found: Row, stage: str, count: int, act: Callable[[], Any]) -> Any:
    """Note the CPU seconds of all threads and the seconds that an act takes, for a million rows."""
    spent_s, start_s = time.process_time(), time.perf_counter()
    result = act()
    found[f"{stage} CPU s per million"] = (time.process_time() - spent_s) / count * 1e6
    found[f"{stage} s"] = time.perf_counter() - start_s
    return result


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


PARTS = {
    "make": make_rows,
    "ingest": ingest_rows,
    "know": know_rows,
    "decide": decide_rows,
    "another": decide_by_another_policy,
    "more": add_night,
    "report": report_rows,
}

if __name__ == "__main__":
    be_part(PARTS)
