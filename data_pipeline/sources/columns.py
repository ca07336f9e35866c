"""Columns of a manifest as arrays: the usual cases at once, the others left to the row readers.

What these functions do not recognise is not wrong yet. They mark its row as odd, and the importer
makes the entry of that row alone, by the functions of `entries`.
"""

from collections.abc import Callable, Mapping
from string import Formatter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from magicdistill.data_pipeline.io.arrow import of_texts, pc
from magicdistill.data_pipeline.io.manifests import Rows
from magicdistill.data_pipeline.sources.entries import (
    ENTRY_SCHEMA,
    Entry,
    Fault,
    entries_to_table,
    number,
)

Mask = npt.NDArray[np.bool_]
RowReader = Callable[[dict[str, Any], int, str], Entry]
_TIME = r"['\"]?(?:(?P<h{0}>\d{{1,6}}):)?(?P<m{0}>\d{{1,6}}):(?P<s{0}>\d{{1,2}}(?:\.\d+)?)['\"]?"
_PLAIN = b"['0:00:00.000', '0:00:00.000']"
"""How Koala-36M writes nearly all spans; a zero stands for any digit."""
_SPAN = rf"^[\[(]\s*{_TIME.format(0)}\s*,\s*{_TIME.format(1)}\s*[\])]$"


def entries_of(rows: Rows, columns: Mapping[str, Any], odd: Mask, entry: RowReader) -> pa.Table:
    """Return the entries of some rows, in order.

    Args:
        rows: the rows.
        columns: fields of the entries of ordinary rows; others have their defaults.
        odd: which rows are not ordinary; a row with a fault is odd in any case.
        entry: makes the entry of an odd row from its values, its line and what reading found wrong
            with it.
    """
    table = _ordinary(rows.columns.num_rows, columns)
    odd = odd | np.array([bool(fault) for fault in rows.faults], bool) if rows.faults else odd
    places = np.flatnonzero(odd)
    if not len(places):
        return table
    lines, faults = rows.lines(), rows.faults or [""] * len(odd)
    odd_rows = zip(rows.columns.take(places).to_pylist(), places.tolist(), strict=True)
    made = [entry(row, lines[place], faults[place]) for row, place in odd_rows]
    where = np.arange(table.num_rows)
    where[places] = np.arange(len(made)) + table.num_rows
    return pa.concat_tables([table, entries_to_table(made)]).take(where).combine_chunks()


def _ordinary(count: int, columns: Mapping[str, Any]) -> pa.Table:
    defaults = entries_to_table([Entry("", "")])
    return pa.table(
        {
            name: columns[name]
            if name in columns
            else pa.repeat(defaults[name][0], count).cast(ENTRY_SCHEMA.field(name).type)
            for name in ENTRY_SCHEMA.names
        },
        schema=ENTRY_SCHEMA,
    )


def text(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return a column as text without white space around it; null is empty."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_list(array.type):
        joined = pc.binary_join(array.cast(pa.list_(pa.string())), ", ")
        array = pc.binary_join_element_wise("[", joined, "]", "")
    array = pc.fill_null(array.cast(pa.string()), "")
    # Trimming every row takes as long as parsing it, so that only those are that may need it.
    content = array.cast(pa.binary())
    ends = pc.binary_slice(content, 0, 1), pc.binary_slice(content, -1, None)
    edge = pa.repeat(False, len(array))
    for end in ends:
        edge = pc.or_(edge, pc.or_(pc.less_equal(end, b" "), pc.greater_equal(end, b"\x7f")))
    if not pc.any(edge).as_py():
        return array
    return pc.replace_with_mask(array, edge, pc.utf8_trim_whitespace(array.filter(edge)))


def spans(column: pa.Array) -> tuple[pa.Array, pa.Array, Mask]:
    """Return starts and ends in seconds of spans as lists of two times, and which are odd."""
    start, stop = _plain_spans(column)
    others = np.isnan(start)
    if others.any():
        found = pc.extract_regex(column.filter(pa.array(others)), _SPAN)
        start[others], stop[others] = (_seconds(found, side) for side in "01")
    with np.errstate(invalid="ignore"):
        fine = np.isfinite(start) & np.isfinite(stop) & (start < stop)
    return pa.array(start), pa.array(stop), ~fine


def _plain_spans(column: pa.Array) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return starts and ends of the spans that are written as `_PLAIN` is, NaN of others.

    The digits of all of them are read at once, in a tenth of the time of a regular expression.
    """
    start, stop = np.full((2, len(column)), np.nan)
    rows = np.flatnonzero(pc.equal(pc.binary_length(column), len(_PLAIN)))
    if not len(rows):
        return start, stop
    _, offsets, content = column.buffers()
    begins = np.frombuffer(offsets, np.int32)[column.offset + rows]
    windows = np.lib.stride_tricks.sliding_window_view(
        np.frombuffer(content, np.uint8), len(_PLAIN)
    )
    plain = np.frombuffer(_PLAIN, np.uint8)
    is_digit = plain == ord("0")
    characters = windows[begins]
    digits = characters[:, is_digit] - np.uint8(ord("0"))
    fits = (digits < 10).all(1) & (characters[:, ~is_digit] == plain[~is_digit]).all(1)
    rows, both = rows[fits], digits[fits].reshape(-1, 2, 8).astype(np.float64)
    hours, minutes = both[..., 0], both[..., 1:3] @ [10, 1]
    seconds = both[..., 3:] @ [10_000, 1000, 100, 10, 1] / 1000
    start[rows], stop[rows] = (hours * 3600 + minutes * 60 + seconds).T
    return start, stop


def _seconds(found: pa.Array, side: str) -> npt.NDArray[np.float64]:
    hours, minutes, seconds = (found.field(f"{unit}{side}") for unit in "hms")
    hours = pc.if_else(pc.equal(hours, ""), "0", hours)
    parts = [
        pc.if_else(found.is_valid(), part, None).cast(pa.float64())
        for part in (hours, minutes, seconds)
    ]
    h, m, s = (part.to_numpy(zero_copy_only=False) for part in parts)
    return h * 3600 + m * 60 + s


def values(column: pa.ChunkedArray | pa.Array) -> tuple[npt.NDArray[np.float64], Mask]:
    """Return numbers, NaN where there is none, and which are odd."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_string(array.type):
        array = pc.if_else(pc.equal(array, ""), None, array)
    try:
        found = array.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        found = np.array([_value(value) for value in array.to_pylist()])
    return found, np.isinf(found)


def _value(value: object) -> float:
    try:
        score = number("", value)
    except Fault:
        return np.inf
    return np.nan if score is None else score


def scores(prefix: str, columns: Mapping[str, pa.ChunkedArray | pa.Array]) -> tuple[pa.Array, Mask]:
    """Return the maps of the scores `<prefix>.<name>` that rows have, and which rows are odd."""
    found = [values(column) for column in columns.values()]
    table = np.column_stack([score for score, _ in found])
    known = ~np.isnan(table)
    offsets = np.concatenate([[0], np.cumsum(known.sum(axis=1))])
    names = pa.array([f"{prefix}.{name}" for name in columns])
    which = np.nonzero(known)[1]
    maps = pa.MapArray.from_arrays(
        pa.array(offsets, pa.int32()), names.take(pa.array(which)), pa.array(table[known])
    )
    return maps, np.logical_or.reduce([odd for _, odd in found])


def none_of(count: int) -> Mask:
    """Return that no row of so many is odd."""
    return np.zeros(count, bool)


def joined(*parts: Any, by: str = "") -> pa.Array:
    """Return texts made of columns and constants side by side."""
    return pc.binary_join_element_wise(*parts, by)


def mask(condition: pa.Array | pa.ChunkedArray) -> Mask:
    """Return a condition as an array of NumPy; null is false."""
    array = condition.combine_chunks() if isinstance(condition, pa.ChunkedArray) else condition
    return pc.fill_null(array, False).to_numpy(zero_copy_only=False)


def texts_of(numbers: pa.Array) -> pa.Array:
    """Return numbers as Python writes them, null as None."""
    found = numbers.to_numpy(zero_copy_only=False)
    with np.errstate(invalid="ignore"):
        usual = (found == 0) | ((np.abs(found) >= 1e-3) & (np.abs(found) < 1e9))
    if not np.all(usual | np.isnan(found)):
        return pa.array([repr(value) for value in numbers.to_pylist()])
    written = numbers.cast(pa.string())
    whole = pc.invert(pc.match_substring(written, "."))
    return pc.fill_null(pc.if_else(whole, joined(written, ".0"), written), "None")


def tuples_of(lists: pa.Array) -> Any:
    """Return lists of numbers as Python writes tuples of them."""
    if pc.max(pc.list_value_length(lists)).as_py() in (0, None):
        return "()"
    return pa.array([str(tuple(values)) for values in lists.to_pylist()])


def digests(texts: pa.Array) -> pa.Array:
    """Return what `rows.digest` does for each text."""
    return of_texts("left(sha256(text), 20)", texts)


def format_names(pattern: str, names: pa.Array, videos: pa.Array) -> pa.Array:
    """Return the file of each clip by a store's pattern."""
    columns = {"name": names, "video": videos, None: ""}
    parts = [*Formatter().parse(pattern)]
    if all(column in columns and not (form or how) for _, column, form, how in parts):
        pieces = [piece for text, column, *_ in parts for piece in (text, columns[column])]
        return joined(*pieces)
    both = zip(names.to_pylist(), videos.to_pylist(), strict=True)
    return pa.array([pattern.format(name=name, video=video) for name, video in both], pa.string())
