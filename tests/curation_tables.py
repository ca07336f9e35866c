"""Ask the curation's queries about a few clips, and get objects back."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import pyarrow as pa

from magicdistill.data_pipeline.config import Bucket, Policy
from magicdistill.data_pipeline.io.kept_tables import KeptTables
from magicdistill.data_pipeline.io.query import Database, name, text
from magicdistill.data_pipeline.ledger.columns import imported_column, widened
from magicdistill.data_pipeline.ledger.decisions import candidates, decided, write_refusals
from magicdistill.data_pipeline.ledger.duplicates import COMPARED
from magicdistill.data_pipeline.ledger.ledger import Ledger, LedgerRows
from magicdistill.data_pipeline.ledger.policy import Decision, judged
from magicdistill.data_pipeline.ledger.scored_clips import (
    repeated_clips,
    scored_clips,
    slice_ranges,
)
from magicdistill.data_pipeline.ledger.takedowns import Takedowns
from magicdistill.data_pipeline.rows import (
    ClipRow,
    Video,
    clips_from_table,
    clips_to_table,
    videos_to_table,
)
from magicdistill.data_pipeline.scorers.base import Scorer
from magicdistill.data_pipeline.selection.judged_clips import ClipTable, JudgedClips
from magicdistill.data_pipeline.selection.listed_videos import ListedVideos, write_listing
from magicdistill.data_pipeline.sources.listing import ASKED, Seen

NOTHING = Takedowns({}, {})


class GivenVideos:
    """Lists given videos in parts, each with a key."""

    def __init__(self, parts: Mapping[str | None, Iterable[Video]]) -> None:
        self.keys, self._parts = [*parts], [*parts.values()]
        self.key = None if None in parts else "-".join(map(str, parts))

    def tables(self, number: int, seen: Seen) -> Iterator[pa.Table]:
        if videos := [*self._parts[number]]:
            table = videos_to_table(videos)
            seen.add(table["video_id"].combine_chunks())
            yield table

    def take_asked(self) -> pa.Table:
        return ASKED.empty_table()

    def holds(self, asked: pa.Table) -> bool:
        return not len(asked)


def listed(db: Database, videos: Sequence[Video]) -> ListedVideos:
    tables = KeptTables(db.folder / "listing")
    folder = tables.begin("videos")
    tables.keep(folder, write_listing(db, folder.path, GivenVideos({None: videos}), NOTHING))
    return ListedVideos(db, folder)


def scored(
    ledger: Ledger, videos: Sequence[Video], measures: str, scorers: Sequence[Scorer] = ()
) -> dict[str, list[ClipRow]]:
    """Return the recorded clips of some videos, as curation sees them, by video id."""
    db = ledger.database
    listing = listed(db, videos)
    blobs = [scorer.kind for scorer in scorers]

    def ask(rows: LedgerRows) -> None:
        for number, part in enumerate(slice_ranges(rows.num_rows)):
            repeated = f"({repeated_clips(rows, part)})"
            query = scored_clips(
                rows, listing.sql, listing.imported, measures, scorers, part, repeated, blobs
            )
            db.write(query, db.folder / "scored" / f"{number}.parquet")

    ledger.read(ask)
    tables = [db.files([file]) for file in sorted((db.folder / "scored").iterdir())]
    clips = ClipTable(db, tables, listing)
    found: dict[str, list[ClipRow]] = {}
    for table in clips.tables():
        for clip in clips_from_table(table):
            found.setdefault(clip.video.video_id, []).append(clip)
    return found


def judged_clips(
    clips: Sequence[ClipRow],
    policy: Policy,
    *buckets: Bucket,
    versions: Mapping[str, str] | None = None,
    held_out: Sequence[ClipRow] = (),
    taken_down: pa.Table | None = None,
) -> JudgedClips:
    """Return clips with the decisions that a policy makes on them, in the same order."""
    db, versions = Database(), versions or {}
    wide = _wide(db, "clips", clips)
    db.write(judged(wide, db.columns(wide), policy, buckets, versions), db.folder / "alone")
    alone = db.files([db.folder / "alone"])
    accepted = _candidates(db, "accepted", f"(FROM {alone} WHERE status = 'accepted')", wide)
    others = [_candidates(db, "held-out", *2 * [_wide(db, "others", held_out)])] if held_out else []
    others = [f"FROM {other}" for other in others]
    gone = NOTHING.clips({}) if taken_down is None else taken_down
    write_refusals(db, accepted, others, gone, policy, db.folder / "refused")
    query = decided(alone, db.files([db.folder / "refused"]))
    db.write(f"{query} ORDER BY ordinal", db.folder / "decided")
    return JudgedClips(
        db, [db.files([db.folder / "decided"])], listed(db, [clip.video for clip in clips])
    )


def decide(clips: Sequence[ClipRow], policy: Policy, *buckets: Bucket, **options) -> list[Decision]:
    """Return one decision per clip, in order, with the blobs and scorers that the clips have."""
    decisions = judged_clips(clips, policy, *buckets, **options).decisions()
    return list(decisions)


def _wide(db: Database, title: str, clips: Sequence[ClipRow]) -> str:
    numbers = pa.array(range(len(clips)), pa.int64())
    with db.named(given=clips_to_table(clips).append_column("ordinal", numbers)):
        wide = widened(db, "given")
        keys = db.rows("SELECT DISTINCT unnest(map_keys(imported_scores)) AS key FROM given")
        imported = "".join(
            f", g.imported_scores[{text(key)}] AS {name(imported_column(key))}" for (key,) in keys
        )
        db.write(
            f"SELECT w.*, g.ordinal{imported} FROM ({wide}) AS w JOIN given AS g USING (clip_id)",
            db.folder / title,
        )
    return db.files([db.folder / title])


def _candidates(db: Database, title: str, clips: str, wide: str) -> str:
    columns = db.columns(wide)
    kinds = [kind for kind in COMPARED if f"blobs.{kind}" in columns]
    db.write(candidates(clips, columns, wide, wide, kinds), db.folder / title)
    return db.files([db.folder / title])
