"""Distil a many-step teacher to a few-step generator."""

from magicdistill.platform.cli import parse_job


def main() -> None:
    """Parse the command line and run the job."""
    args = parse_job("distill", default_recipe="portrait-tiny", description=__doc__ or "")

    from magicdistill.platform.job import run_job

    run_job(args.recipe, args.resume)


if __name__ == "__main__":
    main()
