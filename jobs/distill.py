"""Distil a many-step teacher to a few-step generator."""

from typing import Annotated

import tyro

from magicdistill.models.paths import Location
from magicdistill.platform.config.overrides import RecipeError
from magicdistill.platform.launch.cli import JobFlags, parse_job, refuse, refusing


class Flags(JobFlags):
    """Flags of this job."""

    save_pairs: Annotated[Location | None, tyro.conf.arg(metavar="DIR")] = None
    """Train nothing: make the noise-data pairs of a 1-step recipe, as many as its training reads,
    and store them in DIR, where `--pairs.stored` finds them."""


def main() -> None:
    """Parse the command line and run the job."""
    args = parse_job("distill", Flags, default_recipe="portrait-tiny", description=__doc__ or "")
    folder = args.flags.save_pairs
    if folder is not None and (args.recipe.pairs is None or args.resume):
        message = "--save_pairs goes with a recipe that has `pairs`, and without --resume"
        refuse("distill", RecipeError(message))

    from magicdistill.platform.launch import run_job
    from magicdistill.platform.launch.start_checks import demand_start

    with refusing("distill"):
        demand_start(args.recipe, resumed=args.resume is not None)
        if folder is None:
            run_job.run_job(args.recipe, args.resume, args.cycle)
        else:
            run_job.save_pairs(args.recipe, folder)


if __name__ == "__main__":
    main()
