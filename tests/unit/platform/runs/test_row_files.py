"""Rows of a run outlive what a full disk, a power cut or an editor makes of their file."""

from pathlib import Path
from typing import Any

import pytest

from magicdistill.platform.cluster.cron_scheduler import History
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.runs.row_files import append_row, read_rows
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.tracking.event_log import EventLog
from magicdistill.platform.tracking.events import Begin, Key, Tags

DAMAGE = {
    "NULs": b"\0" * 64 + b"\n",
    "half a row": b'{"step": 2, "loss": 0.\n',
    "half a row at the end": b'{"step": 2, "lo',
    "no UTF-8": b'{"step": 2, "loss\xff\n',
    "an empty line": b"\n",
    "no object": b"17\n",
    "no step": b'{"loss": 1.0}\n',
    "no numbers": b'{"step": 2, "loss": "much"}\n',
    "depth": b"[" * 100_000 + b"\n",
}
damaged = pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)


@pytest.fixture
def run(tmp_path: Path, recipe: Recipe) -> RunDirectory:
    return RunDirectory.create(tmp_path / "runs", recipe)


def add(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


def steps(rows: Any) -> list[int]:
    return [row["step"] for row in rows]


@damaged
def test_the_rows_around_damage_are_read_and_the_next_one_stands_alone(
    tmp_path: Path, damage: bytes
) -> None:
    path = tmp_path / "rows.jsonl"
    append_row(path, 1, {"loss": 0.5})
    add(path, damage)
    append_row(path, 3, {"loss": float("nan")})
    assert steps(read_rows(path)) == [1, 3]


@damaged
def test_a_run_resumes_and_says_what_was_damaged(run: RunDirectory, damage: bytes) -> None:
    files = (run.metrics_path, run.checkpoint_scores_path)
    for path in files:
        append_row(path, 1, {"loss": 0.5})
        add(path, damage)
        append_row(path, 3, {"loss": 0.5})
        append_row(path, 4, {"loss": 0.5})
    run.rewind_metrics(3)
    assert steps(run.metrics()) == steps(run.checkpoint_scores()) == [1, 3]
    assert "metrics.jsonl had 1 damaged line(s): dropped" in run.progress_path.read_text()
    assert all(path.read_bytes().count(b"\n") == 2 for path in files)


@damaged
def test_rows_for_mlflow_are_found_around_damage(run: RunDirectory, damage: bytes) -> None:
    append_row(run.system_metrics_path, 0, {"system/cpu": 0.5})
    add(run.system_metrics_path, damage)
    append_row(run.system_metrics_path, 1, {"system/cpu": 0.5})
    event_log = EventLog(run)
    assert event_log.num_unsent("") == 2
    assert event_log.next_number("system-metrics") == 2


@damaged
def test_events_around_damage_are_sent(run: RunDirectory, damage: bytes) -> None:
    event_log = EventLog(run)
    own = Key(key="key", name="name")
    event_log.add(Begin(own=own, parent=None, time_ms=1, experiment="e"))
    add(event_log.path, damage)
    event_log.add(Tags(values={"a": "b"}))
    again = EventLog(run)
    again.add(Tags(values={"c": "d"}))
    assert [type(logged.event) for logged in again.logged_events()] == [Begin, Tags, Tags]


@pytest.mark.parametrize("content", [b"", b"\0\0\0", b"{"])
def test_small_files_that_a_power_cut_has_emptied_count_as_missing(
    run: RunDirectory, content: bytes
) -> None:
    run.best_path.write_bytes(content)
    (run.path / "mlflow-sent.json").write_bytes(content)
    assert run.best() is None
    assert EventLog(run).progress("").run_id is None
    run.rewind_metrics(0)


def test_a_schedule_reads_its_history_around_damage(tmp_path: Path) -> None:
    record = b'{"due": "2026-01-01T03:00:00Z", "state": "started", "at": "2026-01-01T03:00:00Z"}\n'
    path = tmp_path / "history.jsonl"
    path.write_bytes(record + b"\0" * 64 + b"\n" + record[:20] + b"\xff\n" + record)
    assert len(History(path).records()) == 2
