"""Turn a recipe's sources into a verified latent cache; what is done already is not done again.

--stage STAGE does one part alone, on what earlier runs left: ingest (list the sources, record what
is missing), score, decide, encode. Without it all of them run, and a report is written.
--calibrate prints the quantiles of every score beside the present thresholds, and what each of
them rejects. --report writes the report. Given without a stage, both do no other work.
--verify reads every committed shard and every part of the ledger and exits with 1 where one is
damaged; with --repair those are dropped, and the next run makes them anew. It also prints
statistics of the latents' channels and the PSNR of a decoded sample.
--takedown SOURCE_ID removes a film from ledger, clips and latents, and keeps it away.
"""

import argparse
import sys

from magicdistill.platform.launch.cli import parse_job, refuse


def main() -> None:
    """Parse the command line and run the job."""
    own = argparse.ArgumentParser("python jobs/curate.py", add_help=False, allow_abbrev=False)
    own.add_argument("--stage", choices=("ingest", "score", "decide", "encode", "all"))
    own.add_argument("--calibrate", action="store_true")
    own.add_argument("--report", action="store_true")
    own.add_argument("--verify", action="store_true")
    own.add_argument("--repair", action="store_true")
    own.add_argument("--takedown", metavar="SOURCE_ID")
    flags, rest = own.parse_known_args()
    if flags.repair and not flags.verify:
        own.error("--repair goes with --verify")
    args = parse_job(
        "curate", default_recipe="portrait-tiny-data", description=__doc__ or "", arguments=rest
    )
    if args.resume:
        own.error("curation goes on by itself: give the command without --resume again")

    from magicdistill.platform.config.overrides import RecipeError
    from magicdistill.platform.launch import curation_commands

    try:
        if flags.takedown:
            curation_commands.take_down(args.recipe, flags.takedown)
        elif flags.verify:
            sys.exit(not curation_commands.verify(args.recipe, repair=flags.repair))
        else:
            stage = flags.stage or ("decide" if flags.calibrate or flags.report else "all")
            curation_commands.curate(args.recipe, stage, show=flags.calibrate, report=flags.report)
    except (RecipeError, FileNotFoundError) as error:
        refuse("curate", error)


if __name__ == "__main__":
    main()
