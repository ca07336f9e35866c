"""Folders of tables that a later run finds again, and what becomes of those that nobody uses."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from magicdistill.data_pipeline.io.kept_tables import FACTS, MAX_AGE_S, KeptFolder, KeptTables


def made(tables: KeptTables, key: str, content: str = "rows") -> KeptFolder:
    folder = tables.begin(key)
    (folder.path / "rows.parquet").write_text(content)
    tables.keep(folder, {"parts": [key]})
    return folder


def test_a_folder_is_found_by_its_key_with_what_was_noted(tmp_path: Path):
    tables = KeptTables(tmp_path / "listing")
    path = made(tables, "a").path
    found = tables.find("a")
    assert found and found.path == path and found.facts == {"parts": ["a"]}
    assert tables.find("b") is None


def cut_short(path: Path) -> None:
    os.truncate(path / "rows.parquet", 2)


def lose(path: Path) -> None:
    (path / "rows.parquet").unlink()


def never_finish(path: Path) -> None:
    (path / FACTS).unlink()


def garble(path: Path) -> None:
    (path / FACTS).write_text("{")


@pytest.mark.parametrize("harm", [cut_short, lose, never_finish, garble])
def test_what_a_killed_process_or_a_full_disk_left_is_not_used(
    harm: Callable[[Path], None], tmp_path: Path
):
    tables = KeptTables(tmp_path / "listing")
    harm(made(tables, "a").path)
    assert tables.find("a") is None
    assert made(tables, "a").facts == {"parts": ["a"]}
    assert tables.find("a")


def names(place: Path) -> set[str]:
    return {path.name.partition("-")[0] for path in place.iterdir()}


def test_what_was_used_last_is_kept_and_so_is_what_anybody_holds(tmp_path: Path):
    place, now = tmp_path / "listing", time.time()
    tables = KeptTables(place)
    held = made(tables, "held")
    for age, key in ((300, "old"), (200, "older"), (100, "young")):
        os.utime(made(tables, key).path, (now - age, now - age))
    os.utime(held.path, (now - 400, now - 400))
    begun = tables.begin("begun")
    made(tables, "last")
    assert names(place) == {"held", "begun", "young", "last"}
    del held, begun
    made(tables, "next")
    assert names(place) == {"last", "next"}


def test_what_nobody_has_used_for_a_month_goes_from_every_place(tmp_path: Path):
    path = made(KeptTables(tmp_path / "of other sources"), "a").path
    made(KeptTables(tmp_path / "listing"), "b")
    assert path.exists()
    long_ago = time.time() - MAX_AGE_S - 1
    os.utime(path, (long_ago, long_ago))
    made(KeptTables(tmp_path / "listing"), "c")
    assert not path.exists()


def test_the_facts_name_every_file(tmp_path: Path):
    folder = made(KeptTables(tmp_path / "listing"), "a", "four")
    assert json.loads((folder.path / FACTS).read_text())["sizes"] == {"rows.parquet": 4}
