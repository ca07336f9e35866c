"""An embedded DuckDB: its limits, its folder for intermediate results, and how it reads stores."""

import os
import shutil
import socket
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pyarrow as pa
from upath import UPath

from magicdistill.data_pipeline.io.storage import AnyPath

MEMORY_LIMIT = "2GiB"
"""What queries hold in memory before they use the disk."""
ROWS_PER_GROUP = 20_480
"""Rows of a row group, the smallest part of a file that a query can skip."""
TABLES = f"magicdistill-tables-{os.getuid()}"
"""Folder of one user's intermediate results below the temporary folder (`TMPDIR`)."""
_numbers = count()


class Database:
    """A DuckDB in this process, and a folder for intermediate results that goes with it.

    Folders of processes that were killed are removed by the next one on the same host.
    """

    def __init__(self) -> None:
        self.folder = _new_folder()
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.connection = duckdb.connect(
            config={
                "memory_limit": MEMORY_LIMIT,
                "temp_directory": str(self.folder / "spilled"),
                "preserve_insertion_order": "false",  # costs memory; what has an order asks for it
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
            }
        )
        self.run("SET parquet_metadata_cache = true")
        self._reads_stores = False

    def run(self, sql: str) -> None:
        """Run a statement."""
        self.connection.execute(sql)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Return the few rows of a query."""
        return self.connection.execute(sql).fetchall()

    def value(self, sql: str) -> Any:
        """Return the only value of a query."""
        ((value,),) = self.rows(sql)
        return value

    def table(self, sql: str) -> pa.Table:
        """Return a query's result, which has to fit into memory."""
        return self.connection.sql(sql).to_arrow_table()

    def batches(self, sql: str, size: int) -> Iterator[pa.RecordBatch]:
        """Yield a query's result in batches of at most `size` rows, as they are asked for.

        Other queries may run meanwhile.
        """
        with self.connection.cursor() as cursor:
            yield from cursor.sql(sql).to_arrow_reader(size)

    def write(self, sql: str, path: Path) -> None:
        """Write a query's result as a Parquet file of this folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.run(f"COPY ({sql}) TO {text(path)} (FORMAT parquet, ROW_GROUP_SIZE {ROWS_PER_GROUP})")

    @contextmanager
    def named(self, **tables: pa.Table) -> Iterator[None]:
        """Let queries of the body use Arrow tables by these names."""
        for name, table in tables.items():
            self.connection.register(name, table)
        try:
            yield
        finally:
            for name in tables:
                self.connection.unregister(name)

    def files(self, paths: Sequence[AnyPath]) -> str:
        """Return the table function that reads some Parquet files, whose columns may differ."""
        objects = [path for path in paths if isinstance(path, UPath)]
        if objects and not self._reads_stores:
            self.connection.register_filesystem(objects[0].fs)  # which keeps no listings
            self._reads_stores = True
        names = ", ".join(text(path) for path in paths)
        return f"read_parquet([{names}], union_by_name = true)"

    def columns(self, relation: str) -> dict[str, str]:
        """Return the columns of a table, view or query with their types, in order."""
        return {name: kind for name, kind, *_ in self.rows(f"DESCRIBE SELECT * FROM {relation}")}


def name(column: str) -> str:
    """Return a column's name as SQL."""
    return '"{}"'.format(column.replace('"', '""'))


def text(value: object) -> str:
    """Return a text, or a path, as an SQL literal."""
    return "'{}'".format(str(value).replace("'", "''"))


def _new_folder() -> Path:
    """Return a new folder of this process; remove those of processes that have ended."""
    host, parent = f"{socket.gethostname()}-", Path(tempfile.gettempdir()) / TABLES
    folder = parent / f"{host}{os.getpid()}-{next(_numbers)}"
    folder.mkdir(parents=True)
    for other in parent.iterdir():
        owner = other.name.removeprefix(host).partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(other, ignore_errors=True)
    return folder
