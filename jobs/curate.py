"""Turn a recipe's sources into a verified latent cache; what is done already is not done again.

Without --stage the job lists the sources, scores their clips, decides which are kept, writes the
captions that are missing where the recipe says who does, encodes the clips and writes a report.
--calibrate and --report, given without a stage, do no other work.
"""

import sys
from typing import Annotated, Literal

import tyro

from magicdistill.platform.config.overrides import RecipeError
from magicdistill.platform.launch.cli import JobFlags, Switch, parse_job, refuse, refusing


class Flags(JobFlags):
    """Flags of this job."""

    stage: Literal["ingest", "score", "caption", "decide", "encode", "all"] | None = None
    """Do one part alone, on what earlier runs left: ingest lists the sources and records what is
    missing, score measures clips, caption writes captions (`data.captions`), decide applies the
    policy, encode makes latents."""
    calibrate: Switch = False
    """Print the quantiles of every score beside the present limits, and what each limit rejects."""
    report: Switch = False
    """Write the report."""
    verify: Switch = False
    """Read every committed shard and every part of the ledger, print statistics of the latents and
    the PSNR of a decoded sample, and exit with 1 where something is damaged."""
    repair: Switch = False
    """With --verify, drop what is damaged; the next run makes it again."""
    takedown: Annotated[str | None, tyro.conf.arg(metavar="SOURCE_ID")] = None
    """Remove a film from the ledger, the clips and the latents, and keep it away."""


def main() -> None:
    """Parse the command line and run the job."""
    args = parse_job(
        "curate",
        Flags,
        default_recipe="portrait-tiny-data",
        description=__doc__ or "",
        purpose="other",
    )
    flags = args.flags
    if flags.repair and not flags.verify:
        refuse("curate", RecipeError("--repair goes with --verify"))
    if args.resume:
        message = "curation goes on by itself: give the command without --resume again"
        refuse("curate", RecipeError(message))

    from magicdistill.platform.launch import curation_commands

    with refusing("curate"):
        if flags.takedown:
            curation_commands.take_down(args.recipe, flags.takedown)
        elif flags.verify:
            sys.exit(not curation_commands.verify(args.recipe, repair=flags.repair))
        else:
            stage = flags.stage or ("decide" if flags.calibrate or flags.report else "all")
            curation_commands.curate(args.recipe, stage, show=flags.calibrate, report=flags.report)


if __name__ == "__main__":
    main()
