"""Functions over Arrow's columns, whose modules are imported at their first use.

Importing them takes half a second, and no `--help` needs them.
"""

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


@cache
def _database() -> Any:
    """Return a DuckDB without tables; to open one takes as long as a million hashes."""
    return import_module("duckdb").connect(config={"threads": 1})
