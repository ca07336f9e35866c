"""Functions over Arrow's columns, whose modules are imported at their first use.

Importing them takes half a second, and no `--help` needs them.
"""

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any

import pyarrow as pa


class _Lazy:
    """A module in the making."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._module), name)


pc: Any = _Lazy("pyarrow.compute")
"""Functions over columns; type checkers know none of them."""
pq: Any = _Lazy("pyarrow.parquet")
"""Readers and writers of Parquet files."""


def of_texts(expression: str, texts: pa.Array) -> pa.Array:
    """Return the values of an SQL expression of `text`, one for each of some texts, in order."""
    with _database().cursor() as connection:
        connection.register("texts", pa.table({"text": texts}))
        found = connection.sql(f"SELECT {expression} AS value FROM texts").to_arrow_table()
    return found["value"].combine_chunks()


def in_blocks(tables: Iterator[pa.Table], size: int) -> Iterator[pa.Table]:
    """Yield the same rows in tables of `size`, of which the last one may be shorter."""
    held: list[pa.Table] = []
    for table in tables:
        rows = pa.concat_tables([*held, table])
        whole = len(rows) - len(rows) % size
        for first in range(0, whole, size):
            yield rows.slice(first, size).combine_chunks()
        held = [rows.slice(whole)]
    for rows in held:
        if len(rows):
            yield rows.combine_chunks()


def noted(blocks: Iterator[pa.Table], sent: dict[str, pa.Table]) -> Iterator[pa.Table]:
    """Yield the same blocks, and note each of their rows in `sent` by clip id."""
    for block in blocks:
        ids = block["clip_id"].to_pylist()
        sent |= {clip_id: block.slice(row, 1) for row, clip_id in enumerate(ids)}
        yield block


@cache
def _database() -> Any:
    """Return a DuckDB without tables; to open one takes as long as a million hashes."""
    return import_module("duckdb").connect(config={"threads": 1})
