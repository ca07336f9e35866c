"""Submit a job to a Ray cluster at the times of a cron expression, never two at once.

    python jobs/schedule.py --cron "0 3 * * *" -- jobs/curate.py --recipe nightly

What follows `--` is the job, run in the cluster from a copy of this repository. Stopping the
schedule leaves a running job alone; the next one finds it.
"""

import re
import signal
import sys
from pathlib import Path

from magicdistill.data_pipeline.io.user_files import demand_output_file
from magicdistill.models.config import Config
from magicdistill.models.paths import LocalFile, PathError, WorkingDirectory
from magicdistill.platform.launch.cli import Switch, parse_arguments, refuse
from magicdistill.platform.runs import logs

ROOT = Path(__file__).resolve().parents[1]


class Arguments(Config):
    """Flags of this job."""

    cron: str | None = None
    """When to run: minute, hour, day of month, month, day of week; or six fields from seconds."""
    timezone: str = "UTC"
    """Time zone of --cron, such as Europe/Berlin."""
    once: Switch = False
    """Instead of --cron: run now, unless one is running, wait, and exit with 1 if it fails."""
    catch_up: Switch = False
    """Make up for missed times with one run as soon as possible."""
    skip_missed: Switch = False
    """Let missed times go, which is the default."""
    max_runs: int | None = None
    """Exit after so many runs, with 1 if one of them failed."""
    address: str | None = None
    """Address of the cluster's dashboard, such as http://127.0.0.1:8265; by default
    RAY_API_SERVER_ADDRESS."""
    name: str | None = None
    """Name of the schedule, by default the job's; jobs of one name never run at once."""
    history: LocalFile | None = None
    """File that records every run; by default runs/schedules/NAME.jsonl."""
    working_dir: WorkingDirectory = str(ROOT)
    """Folder that is sent along with the job, or the address of a zip archive that Ray fetches."""
    env: tuple[str, ...] = ()
    """Environment variables of the job, as NAME=VALUE."""
    stop_job: Switch = False
    """Also stop the running job when the schedule is stopped by SIGTERM or Ctrl-C."""
    show: Switch = False
    """Print the history and exit."""


def main() -> None:
    """Parse the command line and keep the schedule."""
    own, entrypoint = _split(sys.argv[1:])
    with logs.ending_with_its_reader():
        args = parse_arguments("schedule", Arguments, __doc__, own)
        if args.show:
            _show(args, entrypoint)
            return
    mistake = _mistake(args, entrypoint)
    if mistake:
        refuse("schedule", ValueError(mistake))
    logs.configure(verbose=False)

    from magicdistill.platform.cluster import cron_scheduler

    path = _history_path(args, entrypoint)
    try:
        demand_output_file(path, "--history")
        timetable = cron_scheduler.Timetable(args.cron, args.timezone) if args.cron else None
        client = cron_scheduler.connect(args.address)
    except (cron_scheduler.ScheduleError, PathError) as error:
        refuse("schedule", error)
    variables = dict(pair.split("=", 1) for pair in args.env)
    name = _name(args, entrypoint)
    job = cron_scheduler.ScheduledJob(name, entrypoint, args.working_dir, variables)
    history = cron_scheduler.History(path)
    scheduler = cron_scheduler.Scheduler(
        job, history, client, timetable, catch_up=args.catch_up, max_runs=args.max_runs
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        succeeded = scheduler.run()
    except KeyboardInterrupt:
        scheduler.leave(stop_job=args.stop_job)
        return
    sys.exit(not succeeded)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the flags before `--` and the job after it."""
    if "--" not in arguments:
        return arguments, []
    middle = arguments.index("--")
    return arguments[:middle], arguments[middle + 1 :]


def _mistake(args: Arguments, entrypoint: list[str]) -> str | None:
    if not entrypoint:
        return "give the job after --, as in: -- jobs/curate.py --recipe nightly"
    if bool(args.cron) == args.once:
        return "give one of --cron and --once"
    if args.catch_up and args.skip_missed:
        return "give one of --catch-up and --skip-missed"
    if args.max_runs is not None and args.max_runs < 1:
        return f"--max-runs {args.max_runs}: give at least 1"
    if wrong := [pair for pair in args.env if "=" not in pair]:
        return f"--env {wrong[0]}: give NAME=VALUE"
    if not re.fullmatch(r"[\w.-]+", _name(args, entrypoint)):
        return f"--name {args.name!r}: use letters, digits, '.', '_' and '-'"
    path = _history_path(args, entrypoint)
    if path.is_dir() or (path.is_file() and path.read_bytes()[:2] not in (b"", b'{"')):
        return f"--history {path}: it is there and no history; give another path"
    return None


def _name(args: Arguments, entrypoint: list[str]) -> str:
    scripts = [Path(word).stem for word in entrypoint if word.endswith(".py")]
    return args.name or next(iter(scripts), "job")


def _history_path(args: Arguments, entrypoint: list[str]) -> Path:
    return args.history or Path("runs/schedules") / f"{_name(args, entrypoint)}.jsonl"


def _show(args: Arguments, entrypoint: list[str]) -> None:
    from magicdistill.platform.cluster import cron_scheduler

    path = _history_path(args, entrypoint)
    if not path.exists():
        refuse("schedule", FileNotFoundError(f"no history {path}; name it with --history"))
    print(cron_scheduler.format_history(cron_scheduler.History(path).records()))


if __name__ == "__main__":
    main()
