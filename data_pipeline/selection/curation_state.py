"""A config on its way through the stages of curation: its videos, their clips and the decisions."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow as pa

from magicdistill.data_pipeline.config import DataConfig
from magicdistill.data_pipeline.io.query import Database, name, text
from magicdistill.data_pipeline.ledger.columns import SLICE, slice_of
from magicdistill.data_pipeline.ledger.decisions import candidates, decided, write_refusals
from magicdistill.data_pipeline.ledger.duplicates import COMPARED
from magicdistill.data_pipeline.ledger.ledger import Ledger, LedgerRows
from magicdistill.data_pipeline.ledger.policy import judged, lacking
from magicdistill.data_pipeline.ledger.scored_clips import (
    repeated_clips,
    scored_clips,
    slice_ranges,
    videos_without_clips,
)
from magicdistill.data_pipeline.ledger.takedowns import Takedowns
from magicdistill.data_pipeline.rows import VIDEO_SCHEMA, digest
from magicdistill.data_pipeline.scorers.base import ABSENT, Scorer
from magicdistill.data_pipeline.selection.curation_result import Selection
from magicdistill.data_pipeline.selection.judged_clips import (
    BATCH_ROWS,
    IN_ORDER,
    ClipTable,
    JudgedClips,
)
from magicdistill.data_pipeline.selection.listed_videos import ListedVideos
from magicdistill.data_pipeline.stages.run_scorers import versions_of

_numbers = count()


class CurationState:
    """What is known so far of one config: the stages fill it in, from its videos to decisions."""

    def __init__(
        self,
        config: DataConfig,
        database: Database,
        ledger: Ledger,
        videos: Iterable[pa.Table],
        takedowns: Takedowns,
    ) -> None:
        """List the videos.

        Args:
            config: the config.
            database: what asks, and its folder.
            ledger: the ledger, which asks with the same database.
            videos: the videos that the config's sources list, as `iter_tables` gives them.
            takedowns: films and contents that must not be used.
        """
        self.config = config
        self._title = f"config-{next(_numbers)}"
        self._db, self._ledger = database, ledger
        self._versions = versions_of(config.measures.scorers)
        self._present = {k: v for k, v in self._versions.items() if not v.startswith(ABSENT)}
        self._taken_down = takedowns.clips(self._versions)
        self._contents = pa.table(
            {
                "content_hash": pa.array(takedowns.contents, pa.string()),
                "taken_down": pa.array(map(takedowns.of_content, takedowns.contents), pa.string()),
            }
        )
        self.listing = ListedVideos(database, f"{self._title}/videos", videos, takedowns)
        self._judged: JudgedClips | None = None
        self._repeated_of: tuple[LedgerRows, str] | None = None
        self._repeated_in = ""

    @property
    def clips(self) -> JudgedClips:
        """The clips with the decisions on them, made by the last call of `judge`."""
        assert self._judged is not None, "no decision was made yet"
        return self._judged

    def new_file(self, purpose: str) -> Path:
        """Return the place of a new file of intermediate results."""
        return self._folder(purpose) / "rows.parquet"

    def commit_faults(self) -> int:
        """Commit a failed row for every video that the listing knows to be unusable, once."""
        if not self._db.value(f"SELECT count(*) FROM {self.listing.sql} WHERE fault <> ''"):
            return 0
        faulty = self._without_clips("fault <> ''")
        failed_id = "left(sha256(concat(video_id, chr(31), 'failed')), 20)"  # as `failed`
        columns = (
            f"{slice_of('video_id')} AS {SLICE}, {failed_id} AS clip_id, video_id, source_id, uri, "
            "path, fingerprint, license, mixture, entry, time_scale, caption, imported_scores, "
            f"{text(self.config.measures.version)} AS measures, fault AS failure"
        )
        return sum(self._ledger.append_wide(query) for query in self._listed(faulty, columns))

    def missing(self, others: Sequence["CurationState"]) -> int:
        """Find the usable videos that have no clips yet, and that no other state lists as well;
        return their number."""
        self._missing = self._without_clips("fault = ''", [other._missing for other in others])
        return self._db.value(f"SELECT count(*) FROM {self._missing}")

    def missing_videos(self) -> Iterator[pa.Table]:
        """Yield what `missing` found in the order of the listing, as tables of `VIDEO_SCHEMA`."""
        columns = ", ".join(name(column) for column in VIDEO_SCHEMA.names)
        for query in self._listed(self._missing, columns):
            for batch in self._db.batches(f"{query} ORDER BY ordinal", BATCH_ROWS):
                yield pa.Table.from_batches([batch]).cast(VIDEO_SCHEMA)

    def _listed(self, some: str, columns: str) -> Iterator[str]:
        """Yield queries of the listed videos that are in a table, in the order of the listing."""
        for listed, ordinals in self.listing.ranges:
            wanted = f"(FROM {some} WHERE {ordinals})"
            yield f"SELECT {columns} FROM {listed} SEMI JOIN {wanted} USING (ordinal)"

    def _without_clips(self, condition: str, others: Sequence[str] = ()) -> str:
        """Return a table of the listed videos that a condition selects, that have no clips and are
        in no other such table."""
        listed = f"(FROM {self.listing.sql} WHERE {condition})"
        version = self.config.measures.version

        def ask(rows: LedgerRows) -> list[Path]:
            target = self._folder("unknown")
            for number, part in enumerate(self._parts(rows)):
                found = videos_without_clips(rows, listed, version, part)
                query = f"SELECT ordinal, video_id, {SLICE} FROM ({found})"
                for other in others:
                    query = f"FROM ({query}) ANTI JOIN (FROM {other} WHERE {part}) USING (video_id)"
                self._db.write(f"{query} ORDER BY ordinal", target / f"{number:03d}.parquet")
            return sorted(target.iterdir())

        return self._db.files(self._ledger.read(ask))

    def _parts(self, rows: LedgerRows) -> list[str]:
        return [*slice_ranges(rows.num_rows + self.listing.num_videos)]

    def lacking(self, scorers: Sequence[Scorer], *, hopeful: bool) -> ClipTable:
        """Find the clips that have not failed and that some of these scorers have not seen.

        With `hopeful`, those are left out that their present scores already reject.
        """
        config = self.config
        versions = versions_of(scorers)

        def ask(rows: LedgerRows) -> list[Path]:
            target = self._folder("lacking")
            for number, part in enumerate(self._parts(rows)):
                clips = f"({self._clips(rows, part)})"
                columns = self._db.columns(clips)
                wanted = f"failure = '' AND {lacking(columns, versions)}"
                if hopeful:
                    clips = f"({judged(clips, columns, config.policy, config.buckets, {})})"
                    wanted += " AND status = 'accepted'"
                ids = self.new_file("ids")
                self._db.write(f"SELECT clip_id FROM {clips} WHERE {wanted}", ids)
                some = self._db.files([ids])
                whole = self._clips(rows, part, some, blobs=list(self._versions))
                self._db.write(f"{whole} {IN_ORDER}", target / f"{number:03d}.parquet")
            return sorted(target.iterdir())

        tables = [self._db.files([file]) for file in self._ledger.read(ask)]
        return ClipTable(self._db, tables, self.listing)

    def judge(self, temporary: Ledger, held_out: Sequence["CurationState"] = ()) -> None:
        """Decide on all clips that the ledger has, and on this run's temporary failures.

        First each clip is judged by itself. Of the accepted ones, copies are rejected, and then
        those beyond the number that one source may give. A clip fails whose content was taken down,
        whichever source lists it, and a near copy of one is rejected.

        Args:
            temporary: the rows of this run's temporary failures.
            held_out: states whose accepted clips must have no copy here.
        """
        folder, db = self._folder("judged"), self._db
        if self._judged is not None and not self._is_selected:
            shutil.rmtree(self._judged_in)  # nobody asks it any more
        parts = self._ledger.read(lambda rows: self._judge_alone(rows, folder), temporary)
        self._candidates = db.files([folder / f"{number}-candidates" for number in parts])
        first = [self._comparable(other) for other in held_out]
        policy, sources = self.config.policy, (s.model_dump_json() for s in self.config.sources)
        # What was compared is known for the clips of one list of sources.
        kept = self._ledger.directory / "compared" / digest(*sources)
        gone, refused = self._taken_down, folder / "refused"
        write_refusals(db, self._candidates, first, gone, policy, refused, kept)
        self._refused = db.files([folder / "refused"])
        for number, part in parts.items():
            accepted = f"(FROM {db.files([folder / f'{number}-alone'])} WHERE status = 'accepted')"
            refused = f"(FROM {self._refused} WHERE {part})"
            query = f"{decided(accepted, refused)} {IN_ORDER}"
            db.write(query, folder / f"{number}-decided")
        pairs = [(folder / f"{number}-alone", folder / f"{number}-decided") for number in parts]
        self._judged = JudgedClips(db, [self._decisions_in(*pair) for pair in pairs], self.listing)
        self._judged_in, self._is_selected = folder, False

    def select(self) -> Selection:
        """Return the decisions together with the counts of videos that have none."""
        num_videos = self.listing.num_videos
        num_unscored = num_videos - self.clips.count_videos()
        faults = self.listing.faults()
        self._is_selected = True
        return Selection(self.config, self.clips, num_videos, num_unscored, faults)

    def num_incomparable(self, held_out: Sequence["CurationState"]) -> dict[str, int]:
        """Return how many held-out clips lack a hash or embedding of our version, by scorer."""
        return {
            kind: count
            for kind, version in self._present.items()
            if kind in COMPARED
            if (count := sum(o._num_kept() for o in held_out if o._versions.get(kind) != version))
        }

    def _num_kept(self) -> int:
        return self.clips.count("status = 'accepted'")

    def _decisions_in(self, alone: Path, decided: Path) -> str:
        """Return the table of clips that others decide on, too, and of those rejected alone."""
        rejected = f"FROM {self._db.files([alone])} WHERE status <> 'accepted'"
        return f"({rejected} UNION ALL FROM {self._db.files([decided])})"

    def _clips(self, rows: LedgerRows, part: str, some: str = "", **options: Any) -> str:
        """Return the query of the scored clips of some slices, or of only those in a table."""
        if some:
            options["only"] = f"clip_id IN (SELECT clip_id FROM {some})"
        measures, listed = self.config.measures, self.listing.sql
        repeated = self._repeated(rows, part)
        settings = self.listing.imported, measures.version, measures.scorers
        return scored_clips(rows, listed, *settings, part, repeated, **options)

    def _repeated(self, rows: LedgerRows, part: str) -> str:
        """Return the table of the clips of some slices that have several rows, or nothing."""
        if self._repeated_of != (rows, part):
            file = self.new_file("repeated")
            self._db.write(repeated_clips(rows, part), file)
            found = self._db.files([file])
            self._repeated_of = rows, part
            self._repeated_in = found if self._db.value(f"SELECT count(*) FROM {found}") else ""
        return self._repeated_in

    def _judge_alone(self, rows: LedgerRows, folder: Path) -> dict[int, str]:
        """Write the clips that are judged by themselves, and what copies of them are found by.

        Returns:
            The condition on slices of each file, by its number.
        """
        config, db = self.config, self._db
        parts = dict(enumerate(self._parts(rows)))
        for number, part in parts.items():
            with db.named(contents=self._contents):
                clips = (
                    "(SELECT c.* REPLACE (CASE WHEN failure = '' THEN "
                    "coalesce(taken_down, '') ELSE failure END AS failure) FROM "
                    f"({self._clips(rows, part)}) AS c LEFT JOIN contents USING (content_hash))"
                )
                columns = db.columns(clips)
                query = judged(clips, columns, config.policy, config.buckets, self._versions)
                db.write(query, folder / f"{number}-alone")
            accepted = f"(FROM {db.files([folder / f'{number}-alone'])} WHERE status = 'accepted')"
            kinds = [kind for kind in COMPARED if kind in self._present]
            looks = f"({self._clips(rows, part, accepted, blobs=kinds)})"
            listed = f"(FROM {self.listing.sql} WHERE {part})"
            query = candidates(accepted, db.columns(accepted), listed, looks, kinds)
            db.write(query, folder / f"{number}-candidates")
        return parts

    def _folder(self, purpose: str) -> Path:
        """Return an empty folder; what the last call for this purpose got stays elsewhere."""
        folder = self._db.folder / self._title / f"{purpose}-{next(_numbers)}"
        folder.mkdir(parents=True)
        return folder

    def _comparable(self, other: "CurationState") -> str:
        """Return the query of another state's accepted clips, with only those hashes and embeddings
        that are of the wanted versions."""
        columns = ", ".join(
            f"NULL::BLOB AS {kind}"
            for kind in COMPARED
            if other._versions.get(kind) != self._versions.get(kind)
        )
        replaced = f" REPLACE ({columns})" if columns else ""
        return (
            f"SELECT *{replaced} FROM {other._candidates} "
            f"ANTI JOIN (FROM {other._refused}) USING (clip_id)"
        )


def agreeing(states: Sequence[CurationState], fields: Sequence[str]) -> list[list[CurationState]]:
    """Group the states whose configs have equal values in all `fields`, dotted paths such as
    `policy.crop_bars`; groups and their members keep their order."""
    read = attrgetter(*fields)
    groups: dict[str, list[CurationState]] = {}
    for state in states:
        groups.setdefault(repr(read(state.config)), []).append(state)
    return list(groups.values())
