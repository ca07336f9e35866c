"""Send to MLflow what a run could not, because the server was away; or all to another server."""

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from magicdistill.platform.config.overrides import parse
from magicdistill.platform.launch.cli import refuse
from magicdistill.platform.runs import logs


@dataclass(frozen=True)
class Arguments:
    """The flags of the job."""

    run: Annotated[str, tyro.conf.arg(metavar="RUN"), tyro.conf.Positional] = "latest"
    """Run by folder or name."""
    uri: str | None = None
    """MLflow server or store, instead of that of the run's recipe."""
    runs: str = "runs"
    """Folder of the runs."""
    verbose: Annotated[tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(aliases=["-v"])] = False
    """Show what the frameworks have to say."""


def main() -> None:
    """Parse the command line and run the job."""
    with logs.ending_with_its_reader():
        args = parse(Arguments, sys.argv[1:], prog="python jobs/track.py", description=__doc__)
    logs.configure(verbose=args.verbose)

    from magicdistill.platform.launch.run_job import register_model
    from magicdistill.platform.runs.run_directory import RunDirectory
    from magicdistill.platform.tracking.tracker import send_unsent

    try:
        run = RunDirectory.open(args.run, root=args.runs)
    except FileNotFoundError as error:
        refuse("track", error)
    config = run.recipe().tracking
    if args.uri:
        config = config.model_copy(update={"uri": args.uri})
    if not send_unsent(config, run, register_model):
        sys.exit(1)
    logs.say(f"MLflow has received all of {run.path.name}")


if __name__ == "__main__":
    main()
