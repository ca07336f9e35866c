"""Train the decoder of a video VAE."""

from magicdistill.platform.launch.cli import parse_job, refusing


def main() -> None:
    """Parse the command line and run the job."""
    args = parse_job("train_vae", default_recipe="portrait-tiny-vae", description=__doc__ or "")

    from magicdistill.platform.launch.run_job import run_job

    with refusing("train_vae"):
        run_job(args.recipe, args.resume, args.cycle)


if __name__ == "__main__":
    main()
