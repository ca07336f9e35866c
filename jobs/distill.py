"""Distil a many-step teacher to a few-step generator.

--save_pairs DIR makes the noise-data pairs of a 1-step recipe, as many as its training reads,
stores them in DIR, where `--pairs.stored` finds them, and trains nothing.
"""

import argparse

from magicdistill.platform.launch.cli import parse_job


def main() -> None:
    """Parse the command line and run the job."""
    own = argparse.ArgumentParser("python jobs/distill.py", add_help=False, allow_abbrev=False)
    own.add_argument("--save_pairs", "--save-pairs", metavar="DIR")
    flags, rest = own.parse_known_args()
    args = parse_job(
        "distill", default_recipe="portrait-tiny", description=__doc__ or "", arguments=rest
    )

    from magicdistill.platform.launch import run_job

    if flags.save_pairs is None:
        run_job.run_job(args.recipe, args.resume)
    elif args.recipe.pairs is None or args.resume:
        own.error("--save_pairs goes with a recipe that has `pairs`, and without --resume")
    else:
        run_job.save_pairs(args.recipe, flags.save_pairs)


if __name__ == "__main__":
    main()
