"""A lock on the folder of a run: one job at a time writes there.

Two trainings in one folder would prune each other's checkpoints and mix their metrics. The lock is
a file that only one process can create, on NFS too, where `flock` need not work. It says who holds
it, and its time of modification is the holder's sign of life. What a killed job left is recognised:
on the same machine its process is gone, from another machine no sign of life comes.
"""

import json
import os
import signal
import sys
import tempfile
import textwrap
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import psutil
from pydantic import ValidationError

from magicdistill.models.config import Config
from magicdistill.platform.runs import logs
from magicdistill.platform.runs.logs import ExplainedError
from magicdistill.platform.runs.run_directory import RunDirectory

SIGN_EVERY_S = 15.0
SILENT_S = 180.0
"""A holder on another machine that has given no sign of life for so long is gone."""
GRACE_S = 60.0
"""How long a job that has lost its lock may take to end."""
CLAIM_S = 10.0
"""After so long, a job that was about to remove a lock was killed before it could."""
MAX_JOB_CHARS = 120


class RunInUseError(ExplainedError):
    """Another job writes in the run; the message says which, since when and what to do."""


class Holder(Config):
    """Who holds a lock."""

    token: str
    """Of this one lock."""
    job: str
    """Its command, and the id of a submitted job."""
    host: str
    machine: str
    """What tells machines of one host name apart, and containers on one machine."""
    pid: int
    started: str
    """What tells the process from an earlier one of its number."""
    since: datetime
    path: str
    file_number: int
    """The lock's inode, which together with its path tells it from a copy in a copied run."""

    def holds(self, path: Path) -> bool | None:
        """Tell whether the lock at a path is held; None where only signs of life can tell."""
        if (self.host, self.machine) != (os.uname().nodename, _machine()):
            return None
        if self.path != str(path.resolve()) and self.file_number != path.stat().st_ino:
            return False
        return _runs(self.pid, self.started)


@contextmanager
def locked(run: RunDirectory) -> Iterator[None]:
    """Hold the lock of a run while the body runs; for the main thread of a job.

    Raises RunInUseError where another job holds it. Interrupts the body where another job takes the
    lock away after all, since this one seemed to be gone.
    """
    path = run.lock_path
    token = _take(path)
    released = threading.Event()
    thread = threading.Thread(target=_give_signs, args=(path, token, released), daemon=True)
    thread.start()
    try:
        yield
    finally:
        released.set()
        thread.join()
        if _token(path) == token:
            path.unlink(missing_ok=True)


def _take(path: Path) -> str:
    """Create the lock, in the place of one that was left behind; return its token."""
    while True:
        try:
            return _create(path)
        except FileExistsError:
            pass
        except OSError as error:
            raise ExplainedError(f"{path} cannot be written: {error.strerror}") from error
        seen = _identity(path)
        if (holder := _held_by(path)) is not None:
            raise RunInUseError(f"run {path.parent.name} is in use by {holder}")
        if seen is not None:
            _remove_left_behind(path, seen)


def _create(path: Path) -> str:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    with open(descriptor, "w") as file:
        holder = Holder(
            token=uuid.uuid4().hex,
            job=_job(),
            host=os.uname().nodename,
            machine=_machine(),
            pid=os.getpid(),
            started=_start_of(os.getpid()),
            since=datetime.now(UTC),
            path=str(path.resolve()),
            file_number=os.fstat(file.fileno()).st_ino,
        )
        try:
            file.write(holder.model_dump_json(indent=2))
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            path.unlink()
            raise
    return holder.token


def _held_by(path: Path) -> str | None:
    """Say who holds a lock, since when and what to do; None where nobody does."""
    try:
        holder = _read(path)
        is_held = holder.holds(path) if holder is not None else None
        silent_s = _age_s(path)
    except FileNotFoundError:  # released meanwhile
        return None
    if is_held is False or (is_held is None and silent_s > SILENT_S):
        return None
    who = "a job that is not known yet"
    if holder is not None:
        since = f"{holder.since.astimezone():%Y-%m-%d %H:%M:%S}"
        who = f"{holder.job} (process {holder.pid} on {holder.host}, since {since})"
    patience = "" if is_held else f", or try again in {SILENT_S - silent_s:.0f} s if it was killed"
    return f"{who}: wait for its end, or end it (touch {path.parent / 'stop'}){patience}"


def _remove_left_behind(path: Path, identity: str) -> None:
    """Remove a lock that nobody holds, unless another job has just done so and taken its own.

    Between the look at the lock and its removal no other job may come: they claim to remove it.
    """
    claim = path.with_name(f".{path.name}.{identity}")
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        time.sleep(0.05)
        with suppress(FileNotFoundError):
            if _age_s(claim) > CLAIM_S:
                claim.unlink()
        return
    if _identity(path) == identity:
        path.unlink()
    claim.unlink()


def _identity(path: Path) -> str | None:
    """Return what tells a lock from others at its place; None where there is none."""
    with suppress(FileNotFoundError):
        facts = path.stat()
        return _token(path) or f"{facts.st_ino}-{facts.st_mtime_ns}"
    return None


def _give_signs(path: Path, token: str, released: threading.Event) -> None:
    """Show that the job runs until it releases the lock; end it where it has lost the lock."""
    while not released.wait(SIGN_EVERY_S):
        try:
            found = _token(path)
            if found == token:
                os.utime(path)
        except OSError:  # a file system that is away for a while
            continue
        if found is not None and found != token:
            logs.say(f"another job has taken over {path.parent}: this one ends")
            os.kill(os.getpid(), signal.SIGINT)
            if not released.wait(GRACE_S):
                os._exit(1)


def _token(path: Path) -> str | None:
    """Return the token of the lock that is there, None where none can be read."""
    with suppress(FileNotFoundError):
        if (holder := _read(path)) is not None:
            return holder.token
    return None


def _read(path: Path) -> Holder | None:
    """Read a lock; None where it is damaged. One that is just being written is waited for."""
    for _ in range(5):
        with suppress(ValidationError):
            return Holder.model_validate_json(path.read_bytes())
        time.sleep(0.1)
    return None


def _age_s(path: Path) -> float:
    """Return the seconds since a lock's last sign of life, by the clock of its file system."""
    with tempfile.NamedTemporaryFile(dir=path.parent) as now:
        return os.fstat(now.fileno()).st_mtime - path.stat().st_mtime


def _runs(pid: int, started: str) -> bool | None:
    """Tell whether a process of this machine runs; None where it is hidden."""
    try:
        return _start_of(pid) == started
    except (FileNotFoundError, psutil.NoSuchProcess):
        return None if psutil.pid_exists(pid) else False


def _start_of(pid: int) -> str:
    """Return what tells a running process from an earlier one of its number."""
    if not Path("/proc/self/stat").exists():
        return f"{psutil.Process(pid).create_time()}"
    # In clock ticks since the start of the machine; in seconds it moves when the clock is set.
    state, *facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return "" if state in "ZX" else facts[18]


@cache
def _machine() -> str:
    """Return what stays the same while this machine runs, for one namespace of processes."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _job() -> str:
    command = " ".join(["/".join(Path(sys.argv[0]).parts[-2:]), *sys.argv[1:]])
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    submission = (submitted.get("metadata") or {}).get("job_submission_id")
    name = f"job {submission}, {command}" if submission else command
    return textwrap.shorten(name, MAX_JOB_CHARS, placeholder=" ...")
