"""The ledger: files that record every clip ever scored, from which a later run resumes."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from magicdistill.data_pipeline.config import Policy
from magicdistill.data_pipeline.io.object_stores import local_state
from magicdistill.data_pipeline.io.query import ROWS_PER_GROUP, Database
from magicdistill.data_pipeline.io.storage import (
    AnyPath,
    list_files,
    list_sizes,
    local_copy,
    open_parquet,
    read_files,
    remove,
    write_batches,
    write_parquet,
)
from magicdistill.data_pipeline.io.whole_files import write_text
from magicdistill.data_pipeline.ledger.columns import (
    SLICE,
    read_back,
    recorded,
    widened,
)
from magicdistill.data_pipeline.ledger.policy import framed
from magicdistill.data_pipeline.rows import (
    CLIP_SCHEMA,
    ClipRow,
    clips_from_table,
    clips_to_table,
    digest,
)
from magicdistill.data_pipeline.scorers.base import ABSENT, Scorer

MAX_SMALL_PARTS = 64
"""With more small parts than these, they are merged."""
SMALL_PART_BYTES = 32 << 20
"""A merged part below this size is small."""
MERGED_BYTES = 64 << 20
"""Parts are merged up to about this total size."""
MERGED = ".wide.parquet"
"""End of the name of a part with a column for each score, as merging makes it."""
NEW_PART_ROWS = 100_000
"""Rows of a part that is committed from a query."""
MADE_AS = b"made_as"
"""Key in the metadata of a file of decisions of the name that tells them from others."""
MERGED_FROM = b"merged_from"
"""Key in the metadata of a merged part of the names of those that it replaces."""
PARTS_AT_ONCE = 64
"""Parts that are read into memory together to be asked."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class LedgerRows:
    """The rows of the parts that were committed when a question was asked."""

    sql: str
    """The query of all rows, with a column for each score: see `columns.py`."""
    columns: Collection[str]
    num_rows: int
    files: Sequence[AnyPath]
    """The files that the rows are in."""
    of: Callable[[Sequence[AnyPath]], str]
    """Returns the query of the rows in some of the files."""

    def without(self, files: Collection[AnyPath]) -> list[AnyPath]:
        """Return the other files."""
        return [file for file in self.files if file not in files]


class Ledger:
    """Scores and failures of clips, as Parquet files ("parts") that appear whole or not at all.

    Parts are only added, never edited, so that many processes and interrupted runs can write
    without locks. The same clip may therefore stand in many parts: `scored_clips.py` brings its
    rows together in a way that depends neither on the order of parts nor on repeated rows.
    """

    def __init__(self, directory: AnyPath, database: Database | None = None) -> None:
        self.directory = directory
        self._scores = directory / "scores"
        self._decisions = directory / "decisions"
        self._scorers = directory / "scorers"
        self._given = database
        self._widened: dict[Path, set[str]] = {}
        """Names of the parts whose rows a file of the database's folder holds in wide columns."""

    @cached_property
    def database(self) -> Database:
        """What asks the ledger's rows."""
        return self._given or Database()

    def append(self, clips: Sequence[ClipRow]) -> None:
        """Commit rows as `commit` does."""
        self.commit(clips_to_table(clips))

    def commit(self, clips: pa.Table) -> None:
        """Commit rows of `CLIP_SCHEMA` as one part; all clips that were found in one video must be
        in the same call."""
        if not len(clips):
            return
        seen = clips.select(["clip_id", "fingerprint", "measures", "scorers", "failure"])
        part = digest(*seen.to_pylist())
        write_parquet(clips, self._scores / f"{part}.parquet")

    def append_wide(self, sql: str) -> int:
        """Commit the rows of a query, which have wide columns; return their number."""
        count = 0
        for batch in self.database.batches(sql, NEW_PART_ROWS):
            rows = pa.Table.from_batches([batch])
            self._write_wide(
                rows, digest(*rows["clip_id"].to_pylist(), *rows["failure"].to_pylist())
            )
            count += len(rows)
        return count

    def read(self, ask: Callable[[LedgerRows], Answer], *others: "Ledger") -> Answer:
        """Return what `ask` answers from all rows of this ledger, and of others.

        It is asked again if another process merges parts meanwhile.
        """
        ledgers = (self, *others)
        parts = [ledger.parts() for ledger in ledgers]
        try:
            files = [
                f for ledger, own in zip(ledgers, parts, strict=True) for f in ledger._wide(own)
            ]
            sql = self._query(files)
            columns = self.database.columns(f"({sql})")
            num_rows = self.database.value(f"SELECT count(*) FROM {self.database.files(files)}")
            return ask(LedgerRows(sql, columns, num_rows, files, self._query))
        except (duckdb.IOException, FileNotFoundError):
            if [ledger.parts() for ledger in ledgers] == parts:
                raise
            return self.read(ask, *others)

    def _query(self, files: Sequence[AnyPath]) -> str:
        return read_back(self.database, self.database.files(files))

    def find(self, clip_ids: Collection[str], policy: Policy | None = None) -> list[ClipRow]:
        """Return all rows of some clips as they were recorded, without bringing them together.

        Of a policy that crops black bars, it is the clips without them.
        """
        wanted = pa.table({"clip_id": pa.array(list(clip_ids), pa.string())})

        def ask(rows: LedgerRows) -> pa.Table:
            with self.database.named(wanted=wanted):
                found = f"(FROM ({rows.sql}) SEMI JOIN wanted USING (clip_id))"
                if policy is not None:
                    found = f"({framed(found, rows.columns, policy)})"
                return self.database.table(f"SELECT {recorded(rows.columns)} FROM {found}")

        return clips_from_table(self.read(ask))

    def describe(self, scorers: Sequence[Scorer]) -> None:
        """Write model, version and preprocessing of each scorer as JSON beside the scores."""
        for scorer in scorers:
            path = self._scorers / f"{scorer.kind}-{scorer.version}.json"
            if scorer.version.startswith(ABSENT) or path.exists():
                continue
            write_text(path, json.dumps(scorer.describe(), indent=1))

    def write_decisions(
        self, name: str, batches: Iterator[pa.RecordBatch], made_as: str = ""
    ) -> AnyPath:
        """Write the decisions of one config as `<name>.parquet` and return that file.

        It is left as it is if it holds the decisions that were made as `made_as`.
        """
        path = self._decisions / f"{name}.parquet"
        if not made_as or _made_as(path) != made_as.encode():
            schema = DECISION_SCHEMA.with_metadata({MADE_AS: made_as})
            repeated = ["source_id", "status", "reasons.list.element"]
            write_batches(batches, schema, path, use_dictionary=repeated)
        return path

    def states(self) -> dict[str, str]:
        """Return a text of each part by its name, which changes where the part is replaced."""
        return {
            path.name: str(local_state(path) if isinstance(path, Path) else size)
            for path, size in list_sizes(self._scores, "*.parquet").items()
        }

    def changed_since(self, states: Mapping[str, str]) -> list[AnyPath] | None:
        """Return the parts that were added or replaced since; None where rows may be lost."""
        now = self.states()
        changed = [part for part in self.parts() if states.get(part.name) != now.get(part.name)]
        merged = {name for part in changed if _is_merged(part) for name in _merged_from(part)}
        return changed if states.keys() - now.keys() <= merged else None

    def files_of(self, parts: Sequence[AnyPath]) -> list[AnyPath]:
        """Return files in wide columns that hold all rows of some parts, and perhaps of others."""
        return self._wide(parts) if parts else []

    def parts(self) -> list[AnyPath]:
        """Return the committed files of scores and failures."""
        return list_files(self._scores, "*.parquet")

    def decision_files(self) -> list[AnyPath]:
        """Return the files of decisions, one for each config."""
        return list_files(self._decisions, "*.parquet")

    def compact(self) -> int:
        """Merge parts, if there are many new or small ones, and return how many were merged.

        The merged part is written before the small ones are removed. A process that is killed in
        between leaves rows twice, which changes nothing, and loses none.

        Raises:
            OSError: if a part cannot be read or fails its checksums, which merging would hide.
        """
        small = {
            part: size
            for part, size in list_sizes(self._scores, "*.parquet").items()
            if size < SMALL_PART_BYTES or not _is_merged(part)
        }
        if len(small) <= MAX_SMALL_PARTS and sum(small.values()) < MERGED_BYTES:
            return 0
        for parts in _batches(small):
            earlier = [name for part in parts if _is_merged(part) for name in _merged_from(part)]
            names = [part.name for part in parts]
            rows = self._merged_rows(parts)
            metadata = {MERGED_FROM: "\n".join((*names, *earlier))}
            self._write_wide(rows.replace_schema_metadata(metadata), digest(*names))
            for part in parts:
                remove(part)
        return len(small)

    def _wide(self, parts: Sequence[AnyPath]) -> list[AnyPath]:
        """Return the files that hold the rows of some parts in wide columns."""
        merged = [part for part in parts if _is_merged(part)]
        plain = {part.name: part for part in parts if not _is_merged(part)}
        known = set().union(*self._widened.values())
        new = [part for part_name, part in plain.items() if part_name not in known]
        for first in range(0, len(new), PARTS_AT_ONCE):
            self._widen(new[first : first + PARTS_AT_ONCE])
        if not merged and not self._widened:
            self._widen([])  # a query needs a file, and one that is empty has all columns
        there = [path for path, names in self._widened.items() if not names or names & plain.keys()]
        return [*merged, *there]

    def _widen(self, parts: Sequence[AnyPath]) -> None:
        found = read_files(parts, CLIP_SCHEMA) if parts else CLIP_SCHEMA.empty_table()
        path = self.database.folder / "widened" / f"{id(self)}-{len(self._widened)}.parquet"
        with self.database.named(new_rows=found):
            self.database.write(f"{widened(self.database, 'new_rows')} ORDER BY {SLICE}", path)
        self._widened[path] = {part.name for part in parts}

    def _merged_rows(self, parts: Sequence[AnyPath]) -> pa.Table:
        """Return the rows of parts in wide columns, sorted by slice; checksums are compared."""
        plain = [part for part in parts if not _is_merged(part)]
        tables = [
            pq.read_table(local_copy(part), page_checksum_verification=True)
            for part in parts
            if _is_merged(part)
        ]
        if plain:
            with self.database.named(plain_rows=read_files(plain, CLIP_SCHEMA, checked=True)):
                tables.append(self.database.table(widened(self.database, "plain_rows")))
        rows = pa.concat_tables(tables, promote_options="default")
        return rows.sort_by(SLICE)

    def _write_wide(self, rows: pa.Table, part: str) -> None:
        write_parquet(rows, self._scores / f"{part}{MERGED}", row_group_size=ROWS_PER_GROUP)


def _made_as(path: AnyPath) -> bytes | None:
    try:
        return _metadata(path).get(MADE_AS)
    except (OSError, pa.ArrowException):
        return None  # it is not there, or damaged


def _merged_from(part: AnyPath) -> list[str]:
    """Return the names of the parts whose rows are in a merged part, and of those whose rows were
    in them."""
    return _metadata(part).get(MERGED_FROM, b"").decode().split("\n")


def _metadata(path: AnyPath) -> Mapping[bytes, bytes]:
    with open_parquet(path) as file:
        return file.schema_arrow.metadata or {}


def _is_merged(part: AnyPath) -> bool:
    return part.name.endswith(MERGED)


def _batches(sizes: Mapping[AnyPath, int]) -> Iterator[list[AnyPath]]:
    """Yield groups of parts to merge, each of at most MERGED_BYTES in all, or of one part."""
    batch: list[AnyPath] = []
    num_bytes = 0
    for part, size in sizes.items():
        if batch and num_bytes + size > MERGED_BYTES:
            yield batch
            batch, num_bytes = [], 0
        batch.append(part)
        num_bytes += size
    yield batch


DECISION_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("source_id", pa.string()),
        ("status", pa.string()),
        ("reasons", pa.list_(pa.string())),
    ]
)
