"""Runs that moved with their folder: MLflow's own store names their files by absolute addresses.

    python -m magicdistill.platform.tracking.relocation RUNS

is what `make dashboard` does first; a job does the same before it sends anything.
"""

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

STORE, ARTIFACTS = "mlflow.db", "mlartifacts"
"""The SQLite file in the folder of the runs, and the folder beside it of all files in MLflow."""
ADDRESSES = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}
"""Columns of MLflow's tables that hold addresses of files."""


def relocate(runs: Path) -> None:
    """Let the store in a folder of runs name its files where the folder is now."""
    store, here = runs / STORE, (runs / ARTIFACTS).absolute().as_uri()
    if not store.is_file():
        return
    with closing(sqlite3.connect(store)) as database, database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        if not ADDRESSES.keys() <= tables:  # of a store that MLflow has not set up yet
            return
        query = "SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE ?"
        for (before,) in database.execute(query, (f"file:%/{ARTIFACTS}",)).fetchall():
            for table, columns in ADDRESSES.items() if before != here else ():
                for column in columns:
                    _move(database, table, column, before, here)


def _move(database: sqlite3.Connection, table: str, column: str, before: str, here: str) -> None:
    """Replace the beginning of all addresses in a column that are below `before`."""
    database.execute(
        f"UPDATE {table} SET {column} = ?1 || substr({column}, length(?2) + 1) "
        f"WHERE {column} = ?2 OR substr({column}, 1, length(?2) + 1) = ?2 || '/'",
        (here, before),
    )


if __name__ == "__main__":
    relocate(Path(sys.argv[1]))
