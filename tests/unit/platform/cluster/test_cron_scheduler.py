"""When a scheduled job is due, and what a history remembers."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from magicdistill.jobs import schedule
from magicdistill.platform.cluster import cron_scheduler
from magicdistill.platform.cluster.cron_scheduler import (
    History,
    Record,
    ScheduledJob,
    ScheduleError,
    Scheduler,
    Timetable,
    connect,
    format_history,
)

NIGHTLY = Timetable("0 3 * * *")
DAY = timedelta(days=1)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_a_time_is_run_once_it_has_come_and_not_before():
    last = at("2026-01-01 03:00")
    early = NIGHTLY.arrived(last, at("2026-01-02 02:59:59"), catch_up=False)
    on_time = NIGHTLY.arrived(last, at("2026-01-02 03:00:02"), catch_up=False)
    assert early == ([], None)
    assert on_time == ([], last + DAY)
    assert NIGHTLY.arrived(last + DAY, at("2026-01-02 03:00:02"), catch_up=False) == ([], None)


def test_missed_times_are_skipped_or_made_up_for_by_one_run():
    last, now = at("2026-01-01 03:00"), at("2026-01-04 10:00")
    assert NIGHTLY.arrived(last, now, catch_up=False) == ([last + k * DAY for k in (1, 2, 3)], None)
    assert NIGHTLY.arrived(last, now, catch_up=True) == (
        [last + DAY, last + 2 * DAY],
        last + 3 * DAY,
    )


def test_times_follow_the_clocks_of_their_zone():
    berlin = Timetable("30 2 * * *", "Europe/Berlin")
    spring = berlin.between(at("2026-03-28 00:00"), at("2026-03-31 00:00"))
    autumn = berlin.between(at("2026-10-24 00:00"), at("2026-10-27 00:00"))
    # 02:30 does not exist on 29 March and comes twice on 25 October: once a day all the same
    assert [f"{time:%d %H:%M}" for time in spring] == ["28 01:30", "29 01:00", "30 00:30"]
    assert [f"{time:%d %H:%M}" for time in autumn] == ["24 00:30", "25 00:30", "26 01:30"]


@pytest.mark.parametrize(
    ("expression", "timezone", "named"),
    [("0 25 * * *", "UTC", "hour"), ("nightly", "UTC", "0 3"), ("0 3 * * *", "Mars/Base", "Mars")],
)
def test_a_mistaken_schedule_is_refused_by_name(expression: str, timezone: str, named: str):
    with pytest.raises(ScheduleError, match=named):
        Timetable(expression, timezone)


@pytest.mark.parametrize("there", ["", '{"due": 1}\n', "mine", "mine\n", None])
def test_a_file_that_is_no_history_is_not_written_to(tmp_path: Path, there: str | None):
    path = tmp_path / "notes"
    _ = path.mkdir() if there is None else path.write_text(there)
    args = schedule.Arguments(once=True, history=path)
    mistake = schedule._mistake(args, ["jobs/curate.py"])
    refused = there is None or there.startswith("mine")
    assert (mistake is not None) == refused
    assert not refused or f"--history {path}" in str(mistake)


def record(hour: int, state: str, job: str = "") -> Record:
    time = datetime(2026, 1, 1, hour, tzinfo=UTC)
    return Record.model_validate({"due": time, "at": time, "state": state, "job": job})


def test_a_history_knows_what_is_unfinished_and_when_it_was_last_due(tmp_path: Path):
    history = History(tmp_path / "schedules" / "curate.jsonl")
    assert history.last_due() is None
    lines = [
        record(1, "submitted", "a"),
        record(1, "succeeded", "a"),
        record(2, "skipped"),
        record(3, "submitted", "b"),
    ]
    for line in lines:
        history.add(line)
    again = History(history.path)
    assert again.records() == lines
    assert [found.job for found in again.unfinished()] == ["b"]
    assert again.last_due() == lines[-1].due
    table = format_history(again.records())
    assert table.count("\n") == 3 and "succeeded" in table and "  a" in table


def test_two_holders_of_a_history_see_what_the_other_adds(tmp_path: Path):
    first, second = (History(tmp_path / "curate.jsonl") for _ in range(2))
    first.add(record(1, "skipped"))
    second.add(record(2, "skipped"))
    first.add(record(3, "skipped"))
    assert first.records() == second.records()
    assert [found.due.hour for found in second.records()] == [1, 2, 3]


def test_a_line_that_was_cut_off_does_not_count_and_is_replaced(tmp_path: Path):
    history = History(tmp_path / "curate.jsonl")
    history.add(record(1, "skipped"))
    with history.path.open("a") as file:
        file.write('{"due":"2026-')
    again = History(history.path)
    assert again.records() == [record(1, "skipped")]
    again.add(record(2, "skipped"))
    assert [found.due.hour for found in History(history.path).records()] == [1, 2]


class SilentTaker(BaseHTTPRequestHandler):
    """Ray's Jobs API as it looks when the answer to a submission is lost; a job takes two looks."""

    def do_GET(self) -> None:
        """Answer with the version, or with the jobs."""
        jobs: list[dict[str, Any]] = self.server.jobs  # type: ignore[attr-defined]
        if self.path != "/api/jobs/":
            return self._answer({"ray_version": "3.0"})
        self._answer(jobs)
        for job in jobs:
            job["status"] = "SUCCEEDED" if job.pop("seen", False) else "RUNNING"
            job |= {"seen": True} if job["status"] == "RUNNING" else {}
        return None

    def do_POST(self) -> None:
        """Take a job and hang up."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kept = {name: asked[name] for name in ("submission_id", "entrypoint", "metadata")}
        self.server.jobs.append(  # type: ignore[attr-defined]
            kept | {"type": "SUBMISSION", "status": "RUNNING"}
        )

    def _answer(self, content: object) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Drop a line."""


@pytest.fixture
def jobs_api() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), SilentTaker)
    server.jobs = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_job_whose_submission_was_not_answered_is_followed_to_its_end(
    jobs_api: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cron_scheduler, "POLL_S", 0.01)
    history = History(tmp_path / "curate.jsonl")
    job = ScheduledJob("curate", ["true"], working_dir="https://example.org/code.zip")
    client = connect(f"http://127.0.0.1:{jobs_api.server_port}")
    scheduler = Scheduler(job, history, client, timetable=None)
    assert scheduler.run()
    assert [record.state for record in history.records()] == ["submitted", "succeeded"]
    assert len(jobs_api.jobs) == 1  # type: ignore[attr-defined]


class FailingJobs(SilentTaker):
    """Ray's Jobs API with one job that failed, as `server.said` tells; its output is apart."""

    def do_GET(self) -> None:
        """Answer with the version, the job, or its output."""
        if self.path == "/api/version":
            return self._answer({"ray_version": "3.0"})
        if self.path.endswith("/logs"):
            return self._answer({"logs": OUTPUT})
        job: dict[str, Any] = {
            "type": "SUBMISSION",
            "submission_id": "curate-1",
            "entrypoint": "",
            "status": "FAILED",
            "message": self.server.said,  # type: ignore[attr-defined]
        }
        return self._answer([job])


OUTPUT = "".join(f"line {number}\n" for number in range(100)) + "no space left on device\n"
EXIT = "Job entrypoint command failed with exit code 1"


@pytest.mark.parametrize("said", [EXIT, f"{EXIT}, last available logs:\n{OUTPUT}"])
def test_a_failed_job_says_why(said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    server = ThreadingHTTPServer(("127.0.0.1", 0), FailingJobs)
    server.said = said  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        history = History(tmp_path / "curate.jsonl")
        history.add(record(1, "submitted", "curate-1"))
        client = connect(f"http://127.0.0.1:{server.server_port}")
        job = ScheduledJob("curate", ["true"], working_dir="")
        Scheduler(job, history, client, NIGHTLY).look()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    printed, last = capsys.readouterr().out, history.records()[1]
    assert last.state == "failed"
    for text in (printed, last.message):
        assert EXIT in text and "no space left on device" in text and "line 99" in text
        assert "line 90" not in text
