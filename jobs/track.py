"""Send to MLflow what a run could not, because the server was away; or all to another server."""

import sys
from typing import Annotated

import tyro

from magicdistill.models.config import Config
from magicdistill.models.paths import LocalPath, TrackingStore
from magicdistill.platform.launch.cli import Switch, parse_arguments, refusing
from magicdistill.platform.runs import logs


class Arguments(Config):
    """Flags of this job."""

    run: Annotated[LocalPath, tyro.conf.arg(metavar="RUN"), tyro.conf.Positional] = "latest"
    """Run to send, by its folder, its name or `latest`."""
    uri: TrackingStore | None = None
    """MLflow server or store that receives it, instead of the one of the run's recipe."""
    runs: LocalPath = "runs"
    """Folder of the runs."""
    verbose: Annotated[Switch, tyro.conf.arg(aliases=["-v"])] = False
    """Also show the messages of the frameworks."""


def main() -> None:
    """Parse the command line and run the job."""
    args = parse_arguments("track", Arguments, __doc__)
    logs.configure(verbose=args.verbose)

    from magicdistill.platform.launch.run_job import register_model, sole_writer
    from magicdistill.platform.runs.run_directory import RunDirectory
    from magicdistill.platform.tracking.tracker import send_unsent

    with refusing("track"):
        run = RunDirectory.open(args.run, root=args.runs)
        config = run.recipe().tracking
        if args.uri:
            config = config.model_copy(update={"uri": args.uri})
        with sole_writer(run):
            has_sent = send_unsent(config, run, register_model)
        if not has_sent:
            sys.exit(1)
    logs.say(f"MLflow has received all of {run.path.name}")


if __name__ == "__main__":
    main()
