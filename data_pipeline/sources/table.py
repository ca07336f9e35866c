"""The generic table: CSV, Parquet or JSON lines of which a recipe names the columns."""

import re
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from string import Formatter
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from magicdistill.data_pipeline.io.arrow import pc
from magicdistill.data_pipeline.io.manifests import Rows, read_rows
from magicdistill.data_pipeline.scorers.registry import score_names
from magicdistill.data_pipeline.sources.base import Mixture, SourceConfig
from magicdistill.data_pipeline.sources.columns import (
    entries_of,
    joined,
    mask,
    none_of,
    scores,
    text,
    values,
)
from magicdistill.data_pipeline.sources.entries import (
    UNIT_FRAME,
    Entry,
    Fault,
    checked_span,
    fractions,
    number,
    numbers,
    parse_seconds,
    parse_span,
)
from magicdistill.data_pipeline.sources.json_lines import demand_address, split_address
from magicdistill.data_pipeline.sources.stores import Terms, listed_at
from magicdistill.models.paths import Location

FIELDS = ("uri", "source_id", "caption", "t0", "t1", "span", "bbox", "license", "mixture")
"""What a column can give, besides `score.<name>`."""


class Table(SourceConfig):
    """Any other collection, as tables in CSV, Parquet or JSON lines, packed or not.

    `columns` says which column has what: `uri`, and if there are any `source_id` (the film),
    `caption`, `t0` and `t1` or both as a `span` (seconds or `H:MM:SS.mmm`), `bbox` (left, top,
    right, bottom as fractions of the frame), `license`, `mixture` and `score.<name>`.
    """

    kind: Literal["table"] = "table"
    manifests: tuple[Location, ...] = Field(min_length=1)
    """The files of the table."""
    dataset: str = Field(pattern="^[^/]+$")
    """Name of the data set, with which source ids and the names of its scores begin."""
    columns: dict[str, str]
    """Column of each field, such as `{uri: path, caption: text, score.quality: q}`. That of `uri`
    may be a pattern of columns, such as `clips/{id}.mp4`."""
    root: Location | None = None
    """Folder or address that relative `uri`s start from, by default the folder of the manifest."""
    license: str
    """License of the rows for which no column names one."""
    mixture: Mixture
    """Mixture of the rows for which no column names one."""
    split_shots: bool = False
    """Cut films into their shots, as in `folder`."""
    SCORES: ClassVar = None

    @model_validator(mode="after")
    def _check_columns(self) -> "Table":
        unknown = [f for f in self.columns if f not in FIELDS and not re.match(r"score\..", f)]
        if unknown:
            choice = ", ".join((*FIELDS, "score.<name>"))
            raise ValueError(f"columns: {', '.join(unknown)} is none of {choice}")
        if "uri" not in self.columns:
            raise ValueError("columns: name the column of `uri`, the path or address of a clip")
        if "span" in self.columns and {"t0", "t1"} & self.columns.keys():
            raise ValueError("columns: give `span`, or `t0` and `t1`, not both")
        try:
            _parts(self.columns["uri"])
        except ValueError as error:
            raise ValueError(f"columns: uri {self.columns['uri']!r}: {error}") from error
        if self.dataset.partition(".")[0] in score_names():
            raise ValueError(f"dataset: {self.dataset!r} is a scorer's name, give another")
        return self

    def tables(self, clips_directory: Path) -> Iterator[pa.Table]:
        """Yield one video per row."""
        open_folder = cache(partial(self.folder, clips_directory=clips_directory))
        wanted = dict.fromkeys(_uri_columns(self.columns["uri"]))
        wanted |= dict.fromkeys(c for field, c in self.columns.items() if field != "uri")
        for manifest in self.manifests:
            root = self.root or manifest.rpartition("/")[0] or "."
            for rows in read_rows(manifest, tuple(wanted)):
                reader = _Reader(self, manifest)
                entries, uris = reader.entries(rows)
                places = [split_address(uri, root) for uri in uris.to_pylist()]
                terms = Terms(
                    self.dataset,
                    reader.texts(rows, "license", self.license),
                    reader.mixtures(rows),
                    split_shots=self.split_shots,
                )
                yield listed_at(entries, places, open_folder, terms)


def _parts(pattern: str) -> list[tuple[str, str]]:
    """Return the literal texts of a pattern, each with the column behind it, empty at the end."""
    if "{" not in pattern and "}" not in pattern:
        return [("", pattern)]
    parts = []
    for literal, column, form, conversion in Formatter().parse(pattern):
        if form or conversion or column == "":
            raise ValueError("write columns as {name}, without a format")
        parts.append((literal, column or ""))
    return parts


def _uri_columns(pattern: str) -> list[str]:
    return [column for _, column in _parts(pattern) if column]


class _Reader:
    """Makes entries of the rows of one manifest."""

    def __init__(self, source: Table, manifest: str) -> None:
        self._source, self._manifest = source, manifest
        self._scores = {
            field.removeprefix("score."): column
            for field, column in source.columns.items()
            if field.startswith("score.")
        }

    def entries(self, rows: Rows) -> tuple[pa.Table, pa.Array]:
        """Return the entries of rows, and the addresses of their files."""
        count = rows.columns.num_rows
        uris = self._uris(rows)
        empty = pa.repeat("", count)
        films = self.texts(rows, "source_id", empty)
        found: dict[str, Any] = {
            "name": uris,
            "video": pc.if_else(pc.equal(films, ""), uris, films),
            "caption": self.texts(rows, "caption", empty),
        }
        odd = mask(pc.or_(pc.equal(uris, ""), pc.match_substring(uris, "://")))
        if self._scores:
            columns = {name: rows.columns[column] for name, column in self._scores.items()}
            found["imported_scores"], unread = scores(self._source.dataset, columns)
            odd |= unread
        odd |= self._span(rows, found) | self._unusual(rows)
        return entries_of(rows, found, odd, self._entry), uris

    def texts(self, rows: Rows, field: str, default: str | pa.Array) -> pa.Array:
        """Return a field's texts, by default this one."""
        column = self._source.columns.get(field)
        if column is None:
            return (
                default
                if isinstance(default, pa.Array)
                else pa.repeat(default, len(self._uris(rows)))
            )
        found = text(rows.columns[column])
        return pc.if_else(pc.equal(found, ""), default, found)

    def mixtures(self, rows: Rows) -> pa.Array:
        """Return the mixture of each row, the source's where the row has none that is known."""
        found = self.texts(rows, "mixture", self._source.mixture)
        known = pc.is_in(found, pa.array(get_args(Mixture)))
        return pc.if_else(known, found, self._source.mixture)

    def _uris(self, rows: Rows) -> pa.Array:
        parts = _parts(self._source.columns["uri"])
        columns = [text(rows.columns[column]) for _, column in parts if column]
        if len(parts) == 1 and not parts[0][0]:
            return columns[0]
        missing = [pc.equal(column, "") for column in columns]
        pieces: list[Any] = []
        for literal, column in parts:
            pieces += [literal, *([columns.pop(0)] if column else [])]
        address = joined(*pieces)
        for lacking in missing:
            address = pc.if_else(lacking, "", address)
        return address

    def _span(self, rows: Rows, found: dict[str, Any]) -> Any:
        """Add the spans of ordinary rows, which are numbers of seconds; return which are odd."""
        columns = self._source.columns
        count = rows.columns.num_rows
        if "span" in columns:
            return np.ones(count, bool)
        if not {"t0", "t1"} & columns.keys():
            return none_of(count)
        nothing = pa.nulls(count, pa.float64())
        start, _ = values(rows.columns[columns["t0"]] if "t0" in columns else nothing)
        stop, _ = values(rows.columns[columns["t1"]] if "t1" in columns else nothing)
        start = np.where(np.isnan(start), 0.0, start)
        found["t0_s"] = pa.array(start)
        found["t1_s"] = pa.array(stop, mask=np.isnan(stop))
        with np.errstate(invalid="ignore"):
            return ~(
                np.isfinite(start)
                & (start >= 0)
                & (np.isnan(stop) | (start < stop) & np.isfinite(stop))
            )

    def _unusual(self, rows: Rows) -> Any:
        """Return which rows have a box or a mixture that is none of the known ones."""
        odd = none_of(rows.columns.num_rows)
        if "bbox" in self._source.columns:
            odd |= mask(pc.not_equal(text(rows.columns[self._source.columns["bbox"]]), ""))
        if "mixture" in self._source.columns:
            found = self.texts(rows, "mixture", self._source.mixture)
            odd |= ~mask(pc.is_in(found, pa.array(get_args(Mixture))))
        return odd

    def _entry(self, row: dict[str, Any], line: int, fault: str) -> Entry:
        where = f"line {line} of {self._manifest.rpartition('/')[2]}"
        columns = self._source.columns.items()
        given = {field: row.get(column) for field, column in columns if field != "uri"}
        texts = pa.table({name: [_as_text(value)] for name, value in row.items()})
        uri = self._uris(Rows(texts, list))[0].as_py()
        film = _as_text(given.get("source_id")) or uri or where
        try:
            if fault:
                raise Fault(fault)
            if not uri:
                raise Fault(f"bad row: {where} has no uri")
            demand_address(uri)
            mixture = _as_text(given.get("mixture"))
            if mixture and mixture not in get_args(Mixture):
                raise Fault(f"bad row: {where} has the mixture {mixture!r}")
            t0_s, t1_s = _span(given)
            box = given.get("bbox") or None
            imported = {name: row[column] for name, column in self._scores.items()}
            return Entry(
                uri,
                film,
                t0_s,
                t1_s,
                crop=fractions(box) if box else (),
                crop_frame=UNIT_FRAME if box else (),
                caption=_as_text(given.get("caption")),
                imported_scores=numbers(self._source.dataset, imported),
            )
        except Fault as found:
            # By its line: without a span it would have the identity of the whole file.
            return Entry(f"{self._manifest}:{line}", film, fault=str(found))


def _as_text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _span(given: Mapping[str, Any]) -> tuple[float, float | None]:
    if given.get("span") not in (None, ""):
        return parse_span(str(given["span"]))
    t0_s, t1_s = (_seconds(given.get(field)) for field in ("t0", "t1"))
    # Where the end is the file's, which is not known yet, only the start is checked.
    start = t0_s or 0.0
    checked_span(start, start + 1 if t1_s is None else t1_s)
    return start, t1_s


def _seconds(value: object) -> float | None:
    try:
        return number("", value)
    except Fault:
        return parse_seconds(str(value))
