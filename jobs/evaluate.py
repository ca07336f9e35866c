"""Score a model beside its teacher on the recipe's held-out clips, by every metric that is there.

--model takes a run (a folder, a name, or `latest`) or a folder of weights; --weights the folder of
the metrics' networks (docs/evaluation.md), without which only temporal flickering and the proxies
are measured. Give the same command again to go on with a stopped evaluation.
"""

import argparse
from pathlib import Path

from magicdistill.platform.cli import parse_job, refuse


def main() -> None:
    """Parse the command line and run the job."""
    own = argparse.ArgumentParser("python jobs/evaluate.py", add_help=False, allow_abbrev=False)
    own.add_argument("--model", metavar="RUN|DIR")
    own.add_argument("--weights", type=Path, metavar="DIR")
    flags, rest = own.parse_known_args()
    args = parse_job(
        "evaluate", default_recipe="portrait-tiny", description=__doc__ or "", arguments=rest
    )
    if flags.model is None or args.resume is not None or args.recipe.evaluation is None:
        own.error("give --model, a recipe that has `evaluation`, and no --resume")

    from magicdistill.platform.scoring import evaluate_model

    try:
        evaluate_model(args.recipe, flags.model, flags.weights and flags.weights.resolve())
    except FileNotFoundError as error:
        refuse("evaluate", error)


if __name__ == "__main__":
    main()
