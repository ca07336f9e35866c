"""Jobs at the times of a cron expression, through Ray's Jobs API and never two at once.

Ray is asked what runs, and a run's id follows from the time that it was due: a scheduler that is
killed at any moment, or that has a twin, submits nothing twice and finds its job again.
"""

import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import requests
from cronsim import CronSim, CronSimError
from filelock import FileLock
from pydantic import ValidationError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from magicdistill.models.config import Config
from magicdistill.platform.runs import logs
from magicdistill.platform.runs.file_polling import Tail

GRACE = timedelta(seconds=60)
"""A time that passed longer ago than this was missed."""
NO_ANSWER = (ConnectionError, RuntimeError, AuthenticationError, requests.RequestException)
"""What a client of the Jobs API raises where Ray is away or refuses the token."""
POLL_S = 2.0
"""Seconds between two looks at a running job."""
MAX_WAIT_S = 60.0
"""Longest wait between two looks at the clock: it may be set while the scheduler sleeps."""
MAX_MESSAGE_CHARS = 300
NUM_LAST_LINES = 5
"""Lines of a failed job's output that are shown; the last ones say why."""
State = Literal["started", "submitted", "succeeded", "failed", "stopped", "lost", "skipped"]
ENDS: dict[JobStatus, State] = {
    JobStatus.SUCCEEDED: "succeeded",
    JobStatus.FAILED: "failed",
    JobStatus.STOPPED: "stopped",
}
"""What Ray calls the end of a job, and what a history calls it."""


class ScheduleError(ValueError):
    """A schedule that cannot be kept; the message names what is wrong and the fix."""


class Timetable:
    """The times of a cron expression in a time zone.

    Where clocks are set forward or back, a fixed time that does not exist or comes twice is due
    once, as with Debian's cron.
    """

    def __init__(self, expression: str, timezone: str = "UTC") -> None:
        """Read an expression of five fields, or of six with seconds first.

        Raises ScheduleError where it is none, or the time zone is unknown.
        """
        self.expression = expression
        try:
            self._zone = ZoneInfo(timezone)
            CronSim(expression, datetime.now(self._zone))
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ScheduleError(
                f"--timezone {timezone!r} is unknown here; an example: Asia/Shanghai"
            ) from error
        except CronSimError as error:
            raise ScheduleError(
                f"--cron {expression!r}: {error}; an example: '0 3 * * *', every day at 03:00"
            ) from error

    def after(self, moment: datetime) -> Iterator[datetime]:
        """Yield the times after a moment, in UTC."""
        for due in CronSim(self.expression, moment.astimezone(self._zone)):
            yield due.astimezone(UTC)

    def between(self, after: datetime, until: datetime) -> list[datetime]:
        """Return the times later than `after` and not later than `until`, in UTC."""
        times = []
        for due in self.after(after):
            if due > until:
                break
            times.append(due)
        return times

    def arrived(
        self, after: datetime, now: datetime, *, catch_up: bool
    ) -> tuple[list[datetime], datetime | None]:
        """Return the times between `after` and `now` that were missed, and the one to run, if any.

        Of several times only the last is run, and only within GRACE of it; with `catch_up` it is
        run however late, in the place of all of them.
        """
        times = self.between(after, now)
        if times and (catch_up or now - times[-1] <= GRACE):
            return times[:-1], times[-1]
        return times, None


class Record(Config):
    """One line of a history."""

    due: datetime
    """When the run was to begin; of several missed ones, the last."""
    state: State
    """What became of the run; a job has a line for its beginning and one for its end."""
    at: datetime
    """When the line was written."""
    job: str = ""
    """Ray's submission id; empty where no job was submitted."""
    duration_s: float | None = None
    """Seconds that the job ran; null where it has not ended or its end is unknown."""
    message: str = ""
    """Why the state is what it is, for people."""


class History:
    """What became of every time that was due: JSON lines, to which schedulers add under a lock.

    Lines are only added, so that a scheduler that is killed while writing damages the last at most.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.lock = FileLock(f"{path}.lock")
        self._tail, self._records = Tail(path, from_start=True), list[Record]()

    def records(self) -> list[Record]:
        """Return all lines, also those of other schedulers; one that was cut off in writing or is
        damaged does not count."""
        for line in self._tail.lines():
            with suppress(ValidationError):
                self._records.append(Record.model_validate_json(line))
        return self._records

    def add(self, record: Record) -> None:
        """Add a line and sync it to the disk, in the place of one that was cut off.

        The caller holds the lock: what stands behind the last whole line is then nobody's work.
        """
        self.records()
        with self.path.open("ab") as file:
            file.truncate(self._tail.offset)
            file.write(record.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def unfinished(self) -> list[Record]:
        """Return the jobs of which no end is recorded."""
        last = {record.job: record for record in self.records() if record.job}
        return [record for record in last.values() if record.state == "submitted"]

    def last_due(self) -> datetime | None:
        """Return the last time that was run or skipped, or else when the schedule began."""
        return max((record.due for record in self.records()), default=None)


@dataclass(frozen=True)
class ScheduledJob:
    """The job of a schedule, which is submitted at each time that is due."""

    name: str
    """Name of the schedule: of all jobs that bear it, one runs at a time."""
    entrypoint: Sequence[str]
    """A command; a script ending in .py is run by `python`."""
    working_dir: str
    """Folder that Ray uploads with the job, or an address that it can fetch."""
    env_vars: dict[str, str] = field(default_factory=dict)

    def submission_id(self, due: datetime) -> str:
        """Return the id of the run of a time.

        It follows from name and time alone, and Ray takes an id once: however often a run is
        submitted, by whichever scheduler, it is one job.
        """
        return f"{self.name}-{due.astimezone(UTC):%Y%m%d-%H%M%S}"

    def submit(self, client: JobSubmissionClient, due: datetime) -> str:
        """Hand the run of a time to Ray and return its id."""
        script = self.entrypoint[0].endswith(".py")
        environment: dict[str, Any] = {"working_dir": self.working_dir, "env_vars": self.env_vars}
        return client.submit_job(
            entrypoint=shlex.join([*(["python"] if script else []), *self.entrypoint]),
            submission_id=self.submission_id(due),
            runtime_env=environment,
            metadata={"schedule": self.name, "due": due.isoformat()},
        )


class Scheduler:
    """Submits a job when it is due, follows it and keeps the history."""

    def __init__(
        self,
        job: ScheduledJob,
        history: History,
        client: JobSubmissionClient,
        timetable: Timetable | None,
        *,
        catch_up: bool = False,
        max_runs: int | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Prepare a schedule; without a timetable it has one run, at once.

        Times that pass while nothing can run are missed: `catch_up` makes up for all of them with
        one run as soon as possible, otherwise they are skipped. `max_runs` is how many are begun.
        """
        self.job, self.history, self.client = job, history, client
        self.timetable, self.catch_up, self.now = timetable, catch_up, now
        self.max_runs = max_runs if timetable else 1
        self.submitted: list[str] = []
        """Ids of the runs that this scheduler began."""
        self._attempted: set[str] = set()
        """Ids that were sent to Ray, with or without an answer."""
        self._tried: dict[str, datetime] = {}
        """When Ray first refused each id."""
        self._at_once: datetime | None = None
        """When the run without a timetable was due: a later try has the same id by it."""
        self._skipped = False
        """Whether the run without a timetable was left out, as another one is running."""
        self._told = ""
        """The last message, which is not printed twice in a row."""

    def run(self) -> bool:
        """Keep the schedule until `max_runs` have ended; tell whether all of them succeeded."""
        while True:
            wait_s = self._look_without_fail()
            states = {record.job: record.state for record in self.history.records()}
            own = [states[job] for job in self.submitted]
            if self._skipped or (self._has_begun_all() and "submitted" not in own):
                return all(state == "succeeded" for state in own)
            time.sleep(wait_s)

    def leave(self, *, stop_job: bool) -> None:
        """End the schedule: stop what runs, or leave it running for the next scheduler to find."""
        running = [record.job for record in self.history.unfinished()]
        for job in running:
            logs.say(f"stopping {job}" if stop_job else f"{job} goes on without the schedule")
            if stop_job:
                self.client.stop_job(job)
        while stop_job and self.history.unfinished():
            time.sleep(POLL_S / 4)
            with self.history.lock:
                self._settle(self._jobs())

    def look(self) -> float:
        """Record what ended, submit what is due, and return the seconds until the next look."""
        with self.history.lock:
            now, jobs = self.now(), self._jobs()
            # First what Ray knows and the history does not: a job whose submission was not answered
            # or not recorded counts as running.
            self._adopt(jobs)
            self._settle(jobs)
            if self.timetable is None:
                self._run_at_once(now, jobs)
                return POLL_S
            last_due = self.history.last_due()
            if last_due is None:
                self._add(now, "started", message=self.timetable.expression)
                last_due = now
            if self._has_begun_all():
                return POLL_S
            if running := self._running(jobs):
                self._tell(f"{running} is running")
                return POLL_S
            missed, due = self.timetable.arrived(last_due, now, catch_up=self.catch_up)
            if missed:
                self._skip(missed, made_up_for=due is not None)
            if due:
                self._submit(due)
                return POLL_S
        coming = next(self.timetable.after(now))
        self._tell(f"next run at {coming:%Y-%m-%d %H:%M:%S} UTC")
        return min((coming - now).total_seconds(), MAX_WAIT_S)

    def _look_without_fail(self) -> float:
        """Do as `look`, but try again later where Ray cannot be reached."""
        try:
            return self.look()
        except NO_ANSWER as error:
            self._tell(f"Ray does not answer, trying again: {_shorten(str(error))}")
            return POLL_S * 5

    def _run_at_once(self, now: datetime, jobs: dict[str, JobDetails]) -> None:
        if self._has_begun_all():
            return
        running = self._running(jobs)
        if running:
            self._add(now, "skipped", message=f"{running} is still running")
            self._skipped = True
            logs.say(f"skipped: {running} is still running")
        else:
            self._at_once = self._at_once or now
            self._submit(self._at_once)

    def _skip(self, missed: Sequence[datetime], *, made_up_for: bool) -> None:
        count = f"{len(missed)} times" if len(missed) > 1 else "once"
        message = f"missed {count}: {'the next run' if made_up_for else 'nothing'} makes up for it"
        self._add(missed[-1], "skipped", message=message)
        logs.say(f"{message} (last {missed[-1]:%Y-%m-%d %H:%M:%S} UTC)")

    def _submit(self, due: datetime) -> None:
        """Submit the run of a time.

        What Ray refuses stays due: the next look tries again, until GRACE is over.
        """
        name = self.job.submission_id(due)
        self._attempted.add(name)  # before it is sent: Ray may take it and the answer be lost
        try:
            self.job.submit(self.client, due)
        except RuntimeError as error:
            reason = f"not submitted: {_shorten(str(error))}"
            self._tell(f"{name} was {reason}")
            if self.now() - self._tried.setdefault(name, self.now()) <= GRACE:
                return
            self._add(due, "failed", name, message=reason)
        else:
            self._add(due, "submitted", name)
            logs.say(f"submitted {name}")
        self.submitted.append(name)

    def _adopt(self, jobs: dict[str, JobDetails]) -> None:
        """Record jobs of this schedule that Ray has and the history lacks; follow our own."""
        known = {record.job for record in self.history.records()}
        for name, job in jobs.items():
            if not self._is_ours(job):
                continue
            if name not in known:
                due = (job.metadata or {})["due"]
                self._add(datetime.fromisoformat(due), "submitted", name)
            if name in self._attempted and name not in self.submitted:
                self.submitted.append(name)

    def _settle(self, jobs: dict[str, JobDetails]) -> None:
        """Record the ends of jobs, and as lost those that Ray has forgotten."""
        for record in self.history.unfinished():
            job = jobs.get(record.job)
            if job is None:
                self._add(record.due, "lost", record.job, message="Ray does not know it any more")
                logs.say(f"{record.job} is lost: Ray does not know it any more")
            elif job.status.is_terminal():
                state, reasons = ENDS[job.status], self._reasons(record.job, job)
                duration_s = ((job.end_time or 0) - (job.start_time or 0)) / 1000
                message = _shorten(" ".join(reasons), keep_end=True)
                self._add(record.due, state, record.job, max(duration_s, 0.0), message)
                logs.say(f"{record.job} {state} after {duration_s:.0f} s")
                for line in reasons if state == "failed" else ():
                    logs.say(f"  {line}")

    def _reasons(self, name: str, job: JobDetails) -> list[str]:
        """Return what Ray says of a job's end and, where it failed, its last lines of output."""
        said = (job.message or "").splitlines()
        if job.status == JobStatus.FAILED and len(said) < 2:  # Ray adds the output where it can
            with suppress(*NO_ANSWER):
                said += self.client.get_job_logs(name).splitlines()
        lines = [line.strip() for line in said if line.strip()]
        return [*lines[:1], *lines[1:][-NUM_LAST_LINES:]]

    def _jobs(self) -> dict[str, JobDetails]:
        return {job.submission_id: job for job in self.client.list_jobs() if job.submission_id}

    def _is_ours(self, job: JobDetails) -> bool:
        return (job.metadata or {}).get("schedule") == self.job.name

    def _has_begun_all(self) -> bool:
        return self.max_runs is not None and len(self.submitted) >= self.max_runs

    def _running(self, jobs: dict[str, JobDetails]) -> str | None:
        """Return the id of the job of this schedule that has not ended, whoever submitted it."""
        for name, job in jobs.items():
            if self._is_ours(job) and not job.status.is_terminal():
                return name
        return None

    def _add(
        self,
        due: datetime,
        state: State,
        job: str = "",
        duration_s: float | None = None,
        message: str = "",
    ) -> None:
        record = Record(
            due=due, state=state, at=self.now(), job=job, duration_s=duration_s, message=message
        )
        self.history.add(record)

    def _tell(self, message: str) -> None:
        if message != self._told:
            logs.say(message)
            self._told = message


def connect(address: str | None) -> JobSubmissionClient:
    """Return a client of a cluster's Jobs API, by default at RAY_API_SERVER_ADDRESS.

    Raises ScheduleError where nobody answers or the token is refused.
    """
    try:
        return JobSubmissionClient(address)
    except NO_ANSWER as error:
        raise ScheduleError(
            f"no Ray cluster answers at {address or 'the default address'}: {error}\n"
            "Set --address to its dashboard, as http://127.0.0.1:8265, and RAY_AUTH_MODE=token "
            "where it asks for a token"
        ) from error


def format_history(records: Sequence[Record], num_last: int = 30) -> str:
    """Return a table of the last runs, each with its latest state."""
    latest = {(record.due, record.job): record for record in records}
    rows = [
        f"{r.due:%Y-%m-%d %H:%M:%S}  {r.state:<9}  "
        f"{'' if r.duration_s is None else format(r.duration_s, '.0f'):>7}  {r.job}  {r.message}"
        for r in sorted(latest.values(), key=lambda record: record.due)[-num_last:]
    ]
    return "\n".join([f"{'due (UTC)':<19}  {'state':<9}  {'seconds':>7}  job  message", *rows])


def _shorten(message: str, *, keep_end: bool = False) -> str:
    """Return a message as one short line; what it ends with says most where a program failed."""
    line = " ".join(message.split())
    if len(line) <= MAX_MESSAGE_CHARS:
        return line
    return f"…{line[1 - MAX_MESSAGE_CHARS :]}" if keep_end else f"{line[: MAX_MESSAGE_CHARS - 1]}…"
