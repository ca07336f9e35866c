"""The embedded database: its folder, the order of what it writes, and files of several ages."""

import gc
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from magicdistill.data_pipeline.io.query import ROWS_PER_GROUP, TABLES, Database


def test_folders_go_with_their_database_and_with_killed_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    left = tmp_path / TABLES / f"{socket.gethostname()}-{ended.pid}-0"
    elsewhere = tmp_path / TABLES / f"elsewhere-{ended.pid}-0"
    for folder in (left, elsewhere):
        folder.mkdir(parents=True)
    first, second = Database(), Database()
    assert first.folder != second.folder
    assert {*(tmp_path / TABLES).iterdir()} == {first.folder, second.folder, elsewhere}
    gone, kept = first.folder, second.folder
    del first
    gc.collect()
    assert kept.exists() and not gone.exists()


def test_an_order_that_is_asked_for_is_that_of_the_row_groups(tmp_path: Path):
    database, path = Database(), tmp_path / "rows.parquet"
    count = 10 * ROWS_PER_GROUP
    database.write(f"SELECT hash(i) AS h FROM range({count}) AS r(i) ORDER BY h", path)
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(i).column(0).statistics for i in range(metadata.num_row_groups)]
    assert len(groups) == 10
    bounds = [bound for group in groups for bound in (group.min, group.max)]
    assert bounds == sorted(bounds)


def test_a_stream_goes_on_while_other_queries_run():
    database = Database()
    stream = database.batches("SELECT i FROM range(100000) AS r(i) ORDER BY i", 3000)
    first = next(stream)
    assert database.value("SELECT 7") == 7
    rest = [value for batch in stream for value in batch.column(0).to_pylist()]
    assert [*first.column(0).to_pylist(), *rest] == [*range(100000)]
