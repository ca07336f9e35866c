"""A config on its way through the stages of curation: its videos, their clips and the decisions."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from operator import attrgetter
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from magicdistill.data_pipeline.captioning.captions import CAPTION
from magicdistill.data_pipeline.config import DataConfig
from magicdistill.data_pipeline.io.kept_tables import KeptFolder, KeptTables
from magicdistill.data_pipeline.io.query import Database, name, text
from magicdistill.data_pipeline.ledger.captions import (
    UNWRITTEN,
    captions_chosen,
    captions_demanded,
)
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
from magicdistill.data_pipeline.selection.listed_videos import ListedVideos, write_listing
from magicdistill.data_pipeline.sources.listing import code_version
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
        kept: Path | None = None,
        key: str | None = None,
    ) -> None:
        """List the videos, unless a run before has kept the same listing.

        Args:
            config: the config.
            database: what asks, and its folder.
            ledger: the ledger, which asks with the same database.
            videos: the videos that the config's sources list, as `iter_tables` gives them.
            takedowns: films and contents that must not be used.
            kept: folder of tables that later runs use again; by default nothing is kept.
            key: changes where the videos may have changed, as `listing_key` does; null keeps no
                listing.
        """
        self.config = config
        self._title = f"config-{next(_numbers)}"
        self._db, self._ledger = database, ledger
        self._versions = versions_of(config.scorers)
        self._present = {k: v for k, v in self._versions.items() if not v.startswith(ABSENT)}
        self._taken_down = takedowns.clips(self._versions)
        self._contents = pa.table(
            {
                "content_hash": pa.array(takedowns.contents, pa.string()),
                "taken_down": pa.array(map(takedowns.of_content, takedowns.contents), pa.string()),
            }
        )
        self._kept = kept or database.folder / self._title / "tables"
        sources = (source.model_dump_json() for source in config.sources)
        self._sources = digest(*sources)
        self._takedowns = digest(takedowns.contents, takedowns.looks)
        folder = self._made(
            "listing",
            key and digest(key, takedowns.sources, self._keeps_captions),
            lambda path: {
                "digest": write_listing(database, path, videos, takedowns, self._keeps_captions)
            },
        )
        self.listing = ListedVideos(database, folder)
        self._listing_digest = folder.facts["digest"]
        self._judged: JudgedClips | None = None
        self._judged_by: str | None = None
        self._repeated_in: dict[tuple[str, str], str] = {}
        """Tables of `repeated_clips`, by the query of rows and the condition on slices."""

    @property
    def caption_version(self) -> str | None:
        """The version of the captions that are written; None where nobody writes any."""
        return self._versions.get(CAPTION)

    @property
    def _keeps_captions(self) -> bool:
        """Whether the listing's captions are measured, as those that are used."""
        captions = self.config.captions
        return captions is not None and captions.existing == "keep"

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
        versions = versions_of(scorers)
        return self._clip_table(
            lambda rows, part: self._clips_lacking(rows, part, versions, hopeful)
        )

    def _clip_table(self, query: Callable[[LedgerRows, str], str]) -> ClipTable:
        """Return the clips that a query of the ledger's rows, and a condition on slices, finds."""

        def ask(rows: LedgerRows) -> list[Path]:
            target = self._folder("found")
            for number, part in enumerate(self._parts(rows)):
                self._db.write(f"{query(rows, part)} {IN_ORDER}", target / f"{number:03d}.parquet")
            return sorted(target.iterdir())

        tables = [self._db.files([file]) for file in self._ledger.read(ask)]
        return ClipTable(self._db, tables, self.listing)

    def _clips_lacking(
        self, rows: LedgerRows, part: str, versions: Mapping[str, str], hopeful: bool
    ) -> str:
        """Return the query of the clips of some slices that lack scores, with their blobs."""
        config, blobs = self.config, list(self._versions)
        # Most rows have all scores; the clips that they are of need not be brought together.
        unseen = f"failure = '' AND {lacking(rows.columns, versions)}"
        some = self._written(f"SELECT clip_id FROM ({rows.sql}) WHERE {part} AND {unseen}")
        if not some:
            return self._clips(rows, part, only="false", blobs=blobs)
        clips = f"({self._clips(rows, part, some)})"
        columns = self._db.columns(clips)
        wanted = f"failure = '' AND {lacking(columns, versions)}"
        if hopeful:
            clips = f"({judged(clips, columns, config.policy, config.buckets, {})})"
            wanted += " AND status = 'accepted'"
        ids = self._written(f"SELECT clip_id FROM {clips} WHERE {wanted}")
        return self._clips(rows, part, ids, blobs=blobs, **{} if ids else {"only": "false"})

    def uncaptioned(self) -> ClipTable | None:
        """Return the clips that `judge` accepts but for a caption; None where there is none.

        Their column `box` is the crop in which they are encoded.
        """
        some = self._written(f"SELECT clip_id, crop AS box FROM {self.clips.sql} WHERE {UNWRITTEN}")
        if not some:
            return None

        def query(rows: LedgerRows, part: str) -> str:
            clips = self._clips(rows, part, some, blobs=list(self._versions))
            return f"SELECT c.*, box FROM ({clips}) AS c JOIN {some} USING (clip_id)"

        return self._clip_table(query)

    def judge(self, temporary: Ledger, held_out: Sequence["CurationState"] = ()) -> None:
        """Decide on all clips that the ledger has, and on this run's temporary failures.

        First each clip is judged by itself. Of the accepted ones, copies are rejected, and then
        those beyond the number that one source may give. A clip fails whose content was taken down,
        whichever source lists it, and a near copy of one is rejected.

        Args:
            temporary: the rows of this run's temporary failures.
            held_out: states whose accepted clips must have no copy here.
        """
        self._judged_by = self._judging_key(temporary, held_out)
        folder = self._made(
            "judged",
            self._judged_by,
            lambda path: {"parts": self._write_judged(path, temporary, held_out)},
        )
        parts = folder.facts["parts"]
        self._candidates, self._refused = self._candidates_in(folder.path, parts)
        tables = [
            self._decisions_in(folder.path / f"{number}-alone", part)
            for number, part in parts.items()
        ]
        self._judged = JudgedClips(self._db, tables, self.listing, folder)

    def _judging_key(self, temporary: Ledger, held_out: Sequence["CurationState"]) -> str | None:
        """Return a text that changes where decisions may; null where they hold for this run."""
        others = [other._judged_by for other in held_out]
        if temporary.parts() or None in others:
            return None
        config = self.config.model_dump_json(), sorted(self._versions.items())
        facts = self._listing_digest, self._takedowns, self._ledger.fingerprint()
        return digest(code_version(), duckdb.__version__, *config, *facts, *others)

    def _write_judged(
        self, folder: Path, temporary: Ledger, held_out: Sequence["CurationState"]
    ) -> dict[str, str]:
        """Write decisions; return the condition on slices of each part by its name."""
        parts = self._ledger.read(lambda rows: self._judge_alone(rows, folder), temporary)
        clips, _ = self._candidates_in(folder, parts)
        first = [self._comparable(other) for other in held_out]
        # What was compared is known for the clips of one list of sources.
        compared = self._ledger.directory / "compared" / self._sources
        gone, policy = self._taken_down, self.config.policy
        write_refusals(self._db, clips, first, gone, policy, folder / "refused", compared)
        return parts

    def _candidates_in(self, folder: Path, parts: Iterable[str]) -> tuple[str, str]:
        """Return the tables of the accepted clips, and of those that others refuse."""
        candidates = [folder / f"{number}-candidates" for number in parts]
        return self._db.files(candidates), self._db.files([folder / "refused"])

    def _made(
        self, purpose: str, key: str | None, make: Callable[[Path], Mapping[str, Any]]
    ) -> KeptFolder:
        """Return the folder that was kept by a key, or a new one that `make` fills.

        Args:
            purpose: what is in it.
            key: changes with what it would hold; null where it is of use in this run alone.
            make: writes the files and returns what is to be known of them.
        """
        own = self._db.folder / self._title / "tables"
        tables = KeptTables((self._kept if key else own) / f"{purpose}-{self._sources}")
        folder = tables.find(key) if key else None
        if folder is None:
            folder = tables.begin(key or "once")
            tables.keep(folder, make(folder.path))
        return folder

    def select(self) -> Selection:
        """Return the decisions together with the counts of videos that have none."""
        num_videos = self.listing.num_videos
        num_unscored = num_videos - self.clips.count_videos()
        faults = self.listing.faults()
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

    def _decisions_in(self, alone: Path, part: str) -> str:
        """Return the table of clips that others decide on, too, and of those rejected alone."""
        clips = self._db.files([alone])
        accepted, refused = (
            f"(FROM {clips} WHERE status = 'accepted')",
            f"(FROM {self._refused} WHERE {part})",
        )
        rejected = f"FROM {clips} WHERE status <> 'accepted'"
        kept = decided(accepted, refused)
        if version := self.caption_version:
            kept = captions_demanded(f"({kept})", self._db.columns(clips), version)
        return f"({rejected} UNION ALL {kept})"

    def _clips(self, rows: LedgerRows, part: str, some: str = "", **options: Any) -> str:
        """Return the query of the scored clips of some slices, or of only those in a table."""
        if some:
            options["only"] = f"clip_id IN (SELECT clip_id FROM {some})"
        measures, listed = self.config.measures, self.listing.sql
        repeated = self._repeated(rows, part) if options.get("only") != "false" else ""
        settings = self.listing.imported, measures.version, self.config.scorers
        return scored_clips(rows, listed, *settings, part, repeated, **options)

    def _repeated(self, rows: LedgerRows, part: str) -> str:
        """Return the table of the clips of some slices that have several rows, or nothing."""
        if (rows.sql, part) not in self._repeated_in:
            self._repeated_in[rows.sql, part] = self._written(repeated_clips(rows, part))
        return self._repeated_in[rows.sql, part]

    def _written(self, query: str) -> str:
        """Return the table of a query's result, or nothing where it is empty."""
        file = self.new_file("found")
        self._db.write(query, file)
        found = self._db.files([file])
        return found if self._db.value(f"SELECT count(*) FROM {found}") else ""

    def _judge_alone(self, rows: LedgerRows, folder: Path) -> dict[str, str]:
        """Write the clips that are judged by themselves, and what copies of them are found by.

        Returns:
            The condition on slices of each file, by its number.
        """
        config, db = self.config, self._db
        # Captions are asked for last: of copies, and of the many clips of a film, few need one.
        versions = {kind: v for kind, v in self._versions.items() if kind != CAPTION}
        texts = [CAPTION] if config.captions else []
        parts = {str(number): part for number, part in enumerate(self._parts(rows))}
        for number, part in parts.items():
            with db.named(contents=self._contents):
                clips = (
                    "(SELECT c.* REPLACE (CASE WHEN failure = '' THEN "
                    "coalesce(taken_down, '') ELSE failure END AS failure) FROM "
                    f"({self._clips(rows, part, blobs=texts)}) AS c "
                    "LEFT JOIN contents USING (content_hash))"
                )
                if texts:
                    clips = f"({captions_chosen(clips, db.columns(clips))})"
                columns = db.columns(clips)
                query = judged(clips, columns, config.policy, config.buckets, versions)
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
