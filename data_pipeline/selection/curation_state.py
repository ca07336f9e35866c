"""A config on its way through the stages of curation: its videos, their clips and the decisions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import count
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from magicdistill.data_pipeline.captioning.captions import CAPTION
from magicdistill.data_pipeline.config import DataConfig
from magicdistill.data_pipeline.io.kept_tables import KeptFolder, KeptTables, link
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
    videos_without_clips,
)
from magicdistill.data_pipeline.ledger.takedowns import Takedowns
from magicdistill.data_pipeline.rows import VIDEO_SCHEMA, digest
from magicdistill.data_pipeline.scorers.base import ABSENT, Scorer
from magicdistill.data_pipeline.selection.changes import Basis, Universe, basis_of, differing
from magicdistill.data_pipeline.selection.curation_result import Selection
from magicdistill.data_pipeline.selection.judged_clips import (
    BATCH_ROWS,
    IN_ORDER,
    ClipTable,
    JudgedClips,
)
from magicdistill.data_pipeline.selection.listed_videos import ListedVideos, Lister, write_listing
from magicdistill.data_pipeline.sources.listing import code_version, place_of
from magicdistill.data_pipeline.stages.run_scorers import versions_of

_numbers = count()
Answer = TypeVar("Answer")


class CurationState:
    """What is known so far of one config: the stages fill it in, from its videos to decisions."""

    def __init__(
        self,
        config: DataConfig,
        database: Database,
        ledger: Ledger,
        lister: Lister,
        takedowns: Takedowns,
        kept: Path | None = None,
    ) -> None:
        """List the videos, unless a run before has kept the same listing.

        Args:
            config: the config.
            database: what asks, and its folder.
            ledger: the ledger, which asks with the same database.
            lister: lists the videos of the config's sources.
            takedowns: films and contents that must not be used.
            kept: folder of tables that later runs use again; by default nothing is kept.
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
        self._sources = place_of(config.sources)
        self._takedowns = digest(takedowns.contents, takedowns.looks)
        keeps = self._keeps_captions
        before = lister.key and next(self._tables("listing", lister.key).newest_first(), None)
        folder = self._made(
            "listing",
            lister.key and digest(lister.key, takedowns.sources, keeps),
            lambda path: write_listing(
                database, path, lister, takedowns, before or None, with_captions=keeps
            ),
        )
        self.listing = ListedVideos(database, folder)
        self._listing_digest = folder.facts["digest"]
        self._decided_before = self._find_decided()
        self._universes: dict[str, Universe] = {}
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
        version = self.config.measures.version

        def ask(videos: Universe) -> list[Path]:
            target = self._folder("unknown")
            listed = f"(FROM {videos.listed} WHERE {condition})"
            for number, part in enumerate(videos.parts()):
                found = videos_without_clips(videos.rows, listed, version, part)
                query = f"SELECT ordinal, video_id, {SLICE} FROM ({found})"
                for other in others:
                    query = f"FROM ({query}) ANTI JOIN (FROM {other} WHERE {part}) USING (video_id)"
                self._db.write(f"{query} ORDER BY ordinal", target / f"{number:03d}.parquet")
            return sorted(target.iterdir())

        return self._db.files(self._ask(ask, to_complete=True))

    def _ask(
        self,
        ask: Callable[[Universe], Answer],
        *others: Ledger,
        to_complete: bool = False,
    ) -> Answer:
        """Return what `ask` answers from the ledger, and from others, about the videos on which
        decisions may differ from the last ones.

        With `to_complete`, which is about what videos and clips lack, these are all unless the last
        run has left nothing to do.
        """
        before = self._decided_before
        if before is None or (to_complete and not before.facts["basis"]["is_complete"]):
            return self._ledger.read(lambda rows: ask(self._everything(rows)), *others)
        return self._ledger.read(
            lambda rows: ask(self._differing(rows, before.facts["basis"], others)), *others
        )

    def _everything(self, rows: LedgerRows) -> Universe:
        return Universe(rows, self.listing.sql, self.listing.num_videos)

    def _differing(self, rows: LedgerRows, basis: Basis, others: Sequence[Ledger]) -> Universe:
        if found := self._universes.get(rows.sql):
            return found
        changed = self._ledger.changed_since(basis["ledger"])
        found = None
        if changed is not None:
            files = self._ledger.files_of(changed)
            files += [file for other in others for file in other.files_of(other.parts())]
            folder = self._folder("differing")
            found = differing(self._db, rows, self.listing, basis, files, folder)
        found = self._universes[rows.sql] = found or self._everything(rows)
        return found

    def lacking(self, scorers: Sequence[Scorer], *, hopeful: bool) -> ClipTable:
        """Find the clips that have not failed and that some of these scorers have not seen.

        With `hopeful`, those are left out that their present scores already reject.
        """
        versions = versions_of(scorers)
        return self._clip_table(
            lambda videos, part: self._clips_lacking(videos, part, versions, hopeful),
            lambda ask: self._ask(ask, to_complete=True),
        )

    def _clip_table(
        self,
        query: Callable[[Universe, str], str],
        asked: Callable[[Callable[[Universe], list[Path]]], list[Path]],
    ) -> ClipTable:
        """Return the clips that a query about videos, and a condition on slices, finds; `asked`
        says which videos these are."""

        def ask(videos: Universe) -> list[Path]:
            target = self._folder("found")
            for number, part in enumerate(videos.parts()):
                clips = query(videos, part)
                self._db.write(f"{clips} {IN_ORDER}", target / f"{number:03d}.parquet")
            return sorted(target.iterdir())

        tables = [self._db.files([file]) for file in asked(ask)]
        return ClipTable(self._db, tables, self.listing)

    def _clips_lacking(
        self, videos: Universe, part: str, versions: Mapping[str, str], hopeful: bool
    ) -> str:
        """Return the query of the clips of some slices that lack scores, with their blobs."""
        config, blobs, rows = self.config, list(self._versions), videos.rows
        # Most rows have all scores; the clips that they are of need not be brought together.
        unseen = f"failure = '' AND {lacking(rows.columns, versions)}"
        some = self._written(f"SELECT clip_id FROM ({rows.sql}) WHERE {part} AND {unseen}")
        if not some:
            return self._clips(videos, part, only="false", blobs=blobs)
        clips = f"({self._clips(videos, part, some)})"
        columns = self._db.columns(clips)
        wanted = f"failure = '' AND {lacking(columns, versions)}"
        if hopeful:
            clips = f"({judged(clips, columns, config.policy, config.buckets, {})})"
            wanted += " AND status = 'accepted'"
        ids = self._written(f"SELECT clip_id FROM {clips} WHERE {wanted}")
        return self._clips(videos, part, ids, blobs=blobs, **{} if ids else {"only": "false"})

    def uncaptioned(self) -> ClipTable | None:
        """Return the clips that `judge` accepts but for a caption; None where there is none.

        Their column `box` is the crop in which they are encoded.
        """
        some = self._written(f"SELECT clip_id, crop AS box FROM {self.clips.sql} WHERE {UNWRITTEN}")
        if not some:
            return None

        def query(videos: Universe, part: str) -> str:
            clips = self._clips(videos, part, some, blobs=list(self._versions))
            return f"SELECT c.*, box FROM ({clips}) AS c JOIN {some} USING (clip_id)"

        return self._clip_table(
            query, lambda ask: self._ledger.read(lambda rows: ask(self._everything(rows)))
        )

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
            lambda path: self._write_judged(path, temporary, held_out),
        )
        self._candidates, self._refused = self._candidates_in(folder.path, folder.facts)
        tables = [
            self._decisions_in(table, part)
            for table, part in self._tables_in(folder.path, folder.facts, "alone")
        ]
        self._judged = JudgedClips(self._db, tables, self.listing, folder)

    def _judging_key(self, temporary: Ledger, held_out: Sequence["CurationState"]) -> str | None:
        """Return a text that changes where decisions may; null where they hold for this run."""
        others = [other._judged_by for other in held_out]
        if temporary.parts() or None in others:
            return None
        facts = self._listing_digest, self._ledger.states()
        return digest(self._context, *facts, *others)

    @cached_property
    def _context(self) -> str:
        """Changes where decisions may differ although videos and ledger are the same."""
        config = self.config.model_dump(mode="json", exclude={"sources"})
        versions = sorted(self._versions.items())
        return digest(code_version(), duckdb.__version__, config, versions, self._takedowns)

    def _find_decided(self) -> KeptFolder | None:
        """Return the last decisions that were made as those of this run will be."""
        folders = self._tables("judged", self._context).newest_first()
        return next((found for found in folders if found.facts["context"] == self._context), None)

    def _write_judged(
        self, folder: Path, temporary: Ledger, held_out: Sequence["CurationState"]
    ) -> Mapping[str, Any]:
        """Write decisions; return the facts that tell which files to read."""
        basis = basis_of(self.listing, self._ledger)
        facts = self._ask(lambda videos: self._judge_alone(videos, folder, basis), temporary)
        clips, _ = self._candidates_in(folder, facts)
        first = [self._comparable(other) for other in held_out]
        # What was compared is known for the clips of one list of sources.
        compared = self._ledger.directory / "compared" / self._sources
        gone, policy = self._taken_down, self.config.policy
        write_refusals(self._db, clips, first, gone, policy, folder / "refused", compared)
        return facts

    def _candidates_in(self, folder: Path, facts: Mapping[str, Any]) -> tuple[str, str]:
        """Return the tables of the accepted clips, and of those that others refuse."""
        tables = [table for table, _ in self._tables_in(folder, facts, "candidates")]
        return f"({' UNION ALL BY NAME '.join(tables)})", self._db.files([folder / "refused"])

    def _tables_in(
        self, folder: Path, facts: Mapping[str, Any], what: str
    ) -> Iterator[tuple[str, str]]:
        """Yield tables of clips that were judged by themselves, with the slices of each."""
        for number, part in facts["parts"].items():
            file = self._db.files([folder / f"{number}-{what}"])
            table = f"SELECT * FROM {file} AS c"
            if facts["num_kept"] is not None:
                since = self._db.files([folder / "since"])
                table += (
                    f" ANTI JOIN {since} AS s USING (ordinal) WHERE ordinal < {facts['num_kept']}"
                )
            yield f"({table})", part
        if facts["num_kept"] is not None:
            yield f"(FROM {self._db.files([folder / f'since-{what}'])})", "true"

    def _made(
        self, purpose: str, key: str | None, make: Callable[[Path], Mapping[str, Any]]
    ) -> KeptFolder:
        """Return the folder that was kept by a key, or a new one that `make` fills.

        Args:
            purpose: what is in it.
            key: changes with what it would hold; null where it is of use in this run alone.
            make: writes the files and returns what is to be known of them.
        """
        tables = self._tables(purpose, key)
        folder = tables.find(key) if key else None
        if folder is None:
            folder = tables.begin(key or "once")
            tables.keep(folder, make(folder.path))
        return folder

    def _tables(self, purpose: str, key: str | None) -> KeptTables:
        own = self._db.folder / self._title / "tables"
        return KeptTables((self._kept if key else own) / f"{purpose}-{self._sources}")

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

    def _decisions_in(self, clips: str, part: str) -> str:
        """Return the table of clips that others decide on, too, and of those rejected alone."""
        accepted, refused = (
            f"(FROM {clips} WHERE status = 'accepted')",
            f"(FROM {self._refused} WHERE {part})",
        )
        rejected = f"FROM {clips} WHERE status <> 'accepted'"
        kept = decided(accepted, refused)
        if version := self.caption_version:
            kept = captions_demanded(f"({kept})", self._db.columns(clips), version)
        return f"({rejected} UNION ALL {kept})"

    def _clips(self, videos: Universe, part: str, some: str = "", **options: Any) -> str:
        """Return the query of the scored clips of some slices, or of only those in a table."""
        if some:
            options["only"] = f"clip_id IN (SELECT clip_id FROM {some})"
        measures, rows, listed = self.config.measures, videos.rows, videos.listed
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

    def _judge_alone(self, videos: Universe, folder: Path, basis: Basis) -> Mapping[str, Any]:
        """Write the clips that are judged by themselves, and what copies of them are found by.

        Those of the last decisions that cannot differ are taken over.
        """
        if videos.num_kept is None:
            parts = {str(number): part for number, part in enumerate(videos.parts())}
            tables = [self._judge_part(videos, part, folder, n) for n, part in parts.items()]
            basis["is_complete"] = self._is_complete(tables)
            return {"context": self._context, "basis": basis, "parts": parts, "num_kept": None}
        before = self._decided_before
        assert before is not None
        facts = {**before.facts, "num_kept": videos.num_kept}
        for number in facts["parts"]:
            for what in ("alone", "candidates"):
                link(before.path / f"{number}-{what}", folder / f"{number}-{what}")
        self._db.write(f"SELECT ordinal FROM {videos.listed}", folder / "since")
        self._judge_part(videos, "true", folder, "since")
        return facts

    def _judge_part(self, videos: Universe, part: str, folder: Path, name: str) -> str:
        """Judge the clips of some slices; return their table."""
        config, db = self.config, self._db
        # Captions are asked for last: of copies, and of the many clips of a film, few need one.
        versions = {kind: v for kind, v in self._versions.items() if kind != CAPTION}
        texts = [CAPTION] if config.captions else []
        with db.named(contents=self._contents):
            clips = (
                "(SELECT c.* REPLACE (CASE WHEN failure = '' THEN "
                "coalesce(taken_down, '') ELSE failure END AS failure) FROM "
                f"({self._clips(videos, part, blobs=texts)}) AS c "
                "LEFT JOIN contents USING (content_hash))"
            )
            if texts:
                clips = f"({captions_chosen(clips, db.columns(clips))})"
            columns = db.columns(clips)
            query = judged(clips, columns, config.policy, config.buckets, versions)
            db.write(query, folder / f"{name}-alone")
        table = db.files([folder / f"{name}-alone"])
        accepted = f"(FROM {table} WHERE status = 'accepted')"
        kinds = [kind for kind in COMPARED if kind in self._present]
        looks = f"({self._clips(videos, part, accepted, blobs=kinds)})"
        listed = f"(FROM {videos.listed} WHERE {part})"
        query = candidates(accepted, db.columns(accepted), listed, looks, kinds)
        db.write(query, folder / f"{name}-candidates")
        return table

    def _is_complete(self, tables: Sequence[str]) -> bool:
        """Tell whether all videos have clips, and all clips the scores that they are to get."""
        cheap = versions_of([s for s in self.config.measures.scorers if not s.COSTLY])
        videos = 0
        for table in tables:
            unseen = lacking(self._db.columns(table), cheap)
            videos += self._db.value(f"SELECT count(DISTINCT ordinal) FROM {table}")
            hopeful = "starts_with(coalesce(reasons[1], ''), 'not scored yet')"
            if self._db.value(
                f"SELECT count(*) FROM {table} WHERE failure = '' AND ({unseen} OR {hopeful})"
            ):
                return False
        return videos == self.listing.num_videos

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
