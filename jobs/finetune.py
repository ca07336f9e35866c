"""Train or fine-tune an image-to-video teacher by flow matching."""

from magicdistill.platform.launch.cli import parse_job, refusing


def main() -> None:
    """Parse the command line and run the job."""
    args = parse_job("finetune", default_recipe="portrait-tiny-teacher", description=__doc__ or "")

    from magicdistill.platform.launch.run_job import run_job

    with refusing("finetune"):
        run_job(args.recipe, args.resume, args.cycle)


if __name__ == "__main__":
    main()
