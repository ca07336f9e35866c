"""Tables that data sets publish, as CSV, Parquet or JSON lines, read piece by piece.

What a file is shows in its first bytes, so its name does not matter; gzip and Zstandard are
unpacked on the way. A piece of a CSV file in which everything is in order is parsed by Arrow. Any
other piece is parsed again row by row, so that what is wrong with one row costs no other.
"""

import codecs
import csv
import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.csv

from magicdistill.data_pipeline.io.arrow import pc, pq
from magicdistill.data_pipeline.io.object_stores import (
    PARQUET,
    demand_manifest,
    first_bytes,
    open_bytes,
    parsed_json,
)

logger = logging.getLogger(__name__)

BLOCK_BYTES = 16 << 20
"""How much of a text is parsed at once."""
MAX_ROW_BYTES = 8 << 20
"""Largest row of a CSV file; a quote that is not closed within it is taken for a stray one."""
MAX_FIELD_CHARS = 1 << 20
"""Longest field that a row may have."""
ROWS_PER_PIECE = 20_000
"""Rows that are read at once of Parquet and JSON lines."""
RESTARTS = 64
"""Lines within a broken row at which a sound one is looked for."""


@dataclass(frozen=True)
class Rows:
    """Some rows of a manifest, one after the other."""

    columns: pa.Table
    """The wanted columns: text of CSV and JSON lines, of Parquet their own types, and null where a
    row has none."""
    lines: Callable[[], Sequence[int]]
    """Returns the line of each row, counted from 1, in which it ends; its number in Parquet."""
    faults: Sequence[str] = ()
    """Reason of each row why it cannot be used, empty where it can; no reasons if all can."""


def read_rows(
    location: str, required: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[Rows]:
    """Yield the rows of a manifest in order; memory does not depend on its length.

    Args:
        location: a local file or an object.
        required: columns that the table has to have. A JSON line may lack one, which is null then.
        optional: further columns that are wanted.

    Raises:
        FileNotFoundError: if there is no such file.
        PathError: if it is a folder or a binary file.
        ValueError: if it lacks a column, or ends in the middle of its compressed content.
    """
    try:
        beginning = first_bytes(location)
        if beginning.startswith(PARQUET):
            yield from _parquet(location, required, optional)
            return
        demand_manifest(location, beginning)
        if beginning.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{"):
            yield from _json_lines(location, (*required, *optional))
        else:
            yield from _csv(location, required, optional)
    except (EOFError, pa.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{location} cannot be read to its end: {error}") from error


def _demand_columns(location: str, required: Sequence[str], found: Sequence[str]) -> None:
    if lacking := sorted(set(required) - set(found)):
        raise ValueError(f"{location} lacks the columns {', '.join(lacking)}")


def _parquet(location: str, required: Sequence[str], optional: Sequence[str]) -> Iterator[Rows]:
    with open_bytes(location) as raw, pq.ParquetFile(raw) as file:
        found = file.schema_arrow.names
        _demand_columns(location, required, found)
        wanted = [name for name in (*required, *optional) if name in found]
        first = 1
        for batch in file.iter_batches(ROWS_PER_PIECE, columns=wanted):
            numbers = range(first, first + batch.num_rows)
            yield Rows(_with_all(pa.table(batch), (*required, *optional)), lambda n=numbers: n)
            first += batch.num_rows


def _with_all(table: pa.Table, wanted: Sequence[str]) -> pa.Table:
    """Return the wanted columns, null where there is none."""
    empty = pa.nulls(table.num_rows, pa.string())
    return pa.table(
        {name: table[name] if name in table.column_names else empty for name in wanted}
    ).combine_chunks()


def _json_lines(location: str, wanted: Sequence[str]) -> Iterator[Rows]:
    with open_bytes(location) as raw:
        lines = enumerate(io.TextIOWrapper(raw, "utf-8-sig", errors="replace", newline=""), 1)
        while some := list(islice(lines, ROWS_PER_PIECE)):
            found = [(number, parsed_json(line)) for number, line in some if line.strip()]
            numbers = [number for number, _ in found]
            rows = [facts if isinstance(facts, dict) else None for _, facts in found]
            faults = [
                "" if facts is not None else f"bad row: line {number} is no JSON object"
                for number, facts in zip(numbers, rows, strict=True)
            ]
            columns = {name: [_text((facts or {}).get(name)) for facts in rows] for name in wanted}
            schema = pa.schema({name: pa.string() for name in wanted})
            yield Rows(pa.table(columns, schema=schema), lambda n=numbers: n, faults)


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def _csv(location: str, required: Sequence[str], optional: Sequence[str]) -> Iterator[Rows]:
    num_nulls, line = 0, 1
    header: list[str] | None = None
    with open_bytes(location) as raw:
        for piece in _pieces(raw):
            first, line = line, line + piece.count(b"\n")
            if b"\0" in piece:
                num_nulls += piece.count(b"\0")
                piece = piece.replace(b"\0", b"")
            if header is None:
                end = piece.find(b"\n") + 1 or len(piece)
                header = next(csv.reader([piece[:end].decode("utf-8-sig", "replace")]), [])
                _demand_columns(location, required, header)
                place = {name: number for number, name in enumerate(header)}
                places = {n: place[n] for n in (*required, *optional) if n in place}
                piece, first = piece[end:], first + 1
            if piece:
                rows = _parse(piece, first, len(header), places)
                yield Rows(_with_all(rows.columns, (*required, *optional)), rows.lines, rows.faults)
    if header is None:
        _demand_columns(location, required, ())
    if num_nulls:
        logger.warning("%s: %d null bytes in it are left out", location, num_nulls)


def _pieces(raw: Any) -> Iterator[bytes]:
    """Yield a file's bytes in pieces that end where a row does.

    That is at the last line end with an even number of quotes before it. Where a row does not end
    within `MAX_ROW_BYTES`, its first line is a piece of its own.
    """
    rest = b""
    while block := raw.read(BLOCK_BYTES):
        rest += block
        while end := _row_end(rest) or (
            len(rest) > MAX_ROW_BYTES and rest.find(b"\n", 0, MAX_ROW_BYTES) + 1
        ):
            yield rest[:end]
            rest = rest[end:]
        if len(rest) > MAX_ROW_BYTES:  # one line, of which enough is left to know it is too long
            rest = rest[:BLOCK_BYTES]
    if rest:
        yield rest


def _row_end(text: bytes) -> int:
    """Return where the last whole row of a text ends, 0 if none does."""
    num_quotes, end = text.count(b'"'), len(text)
    while (found := text.rfind(b"\n", 0, end)) >= 0:
        num_quotes -= text.count(b'"', found, end)
        if num_quotes % 2 == 0:
            return found + 1
        end = found
    return 0


def _parse(piece: bytes, first_line: int, width: int, places: dict[str, int]) -> Rows:
    """Return the rows of a piece whose first line has this number in the file."""
    names = [str(number) for number in range(width)]
    try:
        table = pyarrow.csv.read_csv(
            pa.BufferReader(piece),
            pyarrow.csv.ReadOptions(
                use_threads=False, block_size=len(piece) + 1, column_names=names
            ),
            pyarrow.csv.ParseOptions(newlines_in_values=True),
            pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                include_columns=[names[number] for number in places.values()],
            ),
        )
    except pa.ArrowInvalid:
        return _parse_slowly(piece, first_line, width, places)
    if any((pc.max(pc.binary_length(c)).as_py() or 0) > MAX_FIELD_CHARS for c in table.columns):
        return _parse_slowly(piece, first_line, width, places)
    return Rows(table.rename_columns(list(places)), partial(_lines, piece, first_line, width))


def _lines(piece: bytes, first_line: int, width: int) -> list[int]:
    return [line for _, line, _ in _slow_rows(piece, first_line, width)]


def _parse_slowly(piece: bytes, first_line: int, width: int, places: dict[str, int]) -> Rows:
    rows = list(_slow_rows(piece, first_line, width))
    columns = {
        name: [fields[place] if place < len(fields) else None for fields, _, _ in rows]
        for name, place in places.items()
    }
    schema = pa.schema({name: pa.string() for name in places})
    lines = [line for _, line, _ in rows]
    return Rows(pa.table(columns, schema=schema), lambda: lines, [fault for _, _, fault in rows])


def _slow_rows(piece: bytes, first_line: int, width: int) -> Iterator[tuple[list[str], int, str]]:
    """Yield the fields of each row, the line in which it ends, and what is wrong with it.

    A row over several lines with too few or too many fields and an odd number of quotes has one
    that nobody closed: what is before the first of its lines in which a sound row begins is the
    row.
    """
    csv.field_size_limit(4 * MAX_ROW_BYTES)  # of the whole process: a reader has none of its own
    lines = list(io.StringIO(piece.decode(errors="replace"), newline=""))
    begin = 0
    while begin < len(lines):
        for fields, end in _records(lines, begin):
            sound = len(fields) == width
            if not sound and sum(line.count('"') for line in lines[begin:end]) % 2:
                end = _restart(lines, begin, end, width)
            last = first_line + end - 1
            fault = "" if sound else f"bad row: line {last} has not as many fields as the header"
            if any(len(field) > MAX_FIELD_CHARS for field in fields):
                fault = (
                    f"bad row: line {last} has a field of more than {MAX_FIELD_CHARS} characters"
                )
                fields = [field[:100] for field in fields]
            if fields:
                yield fields, last, fault
            begin = end
            if not sound:
                break


def _records(lines: list[str], begin: int) -> Iterator[tuple[list[str], int]]:
    reader = csv.reader(islice(lines, begin, None))
    for fields in reader:
        yield fields, begin + reader.line_num


def _restart(lines: list[str], begin: int, end: int, width: int) -> int:
    """Return where the first sound row within a broken one begins; its end if there is none."""
    for start in range(begin + 1, min(end, begin + RESTARTS)):
        if len(next(_records(lines, start), ([], 0))[0]) == width:
            return start
    return end
