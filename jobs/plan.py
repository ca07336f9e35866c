"""Tell what a recipe needs: memory by role and part, time, data, and whether it fits.

--json prints it for machines. --mfu SHARE is the share of the GPUs' peak that computation reaches;
0.4 by default, what the papers' 10 minutes for 28 steps on one H100 come to. --rates FILE takes it
from a result of benchmarks/gpu.py.
"""

import argparse
import sys
from pathlib import Path

from magicdistill.platform.launch.cli import parse_job
from magicdistill.platform.runs import logs


def main() -> None:
    """Parse the command line and print the plan; exit with 1 where the recipe does not fit."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--json", action="store_true")
    speed = own.add_mutually_exclusive_group()
    speed.add_argument("--mfu", type=float)
    speed.add_argument("--rates", type=Path)
    flags, rest = own.parse_known_args()
    args = parse_job(
        "plan",
        default_recipe="magic141-4step-40xh100",
        description=__doc__ or "",
        arguments=rest,
    )

    from magicdistill.platform.config.overrides import RecipeError
    from magicdistill.platform.planning.gpu_rates import measured_mfu
    from magicdistill.platform.planning.plan import PAPER_MFU, plan
    from magicdistill.platform.planning.plan_table import format_plan, to_json

    try:
        mfu = PAPER_MFU if flags.mfu is None else flags.mfu
        if flags.rates is not None:
            mfu = measured_mfu(flags.rates, args.recipe)
        made = plan(args.recipe, mfu=mfu)
    except RecipeError as error:
        sys.exit(str(error))
    with logs.ending_with_its_reader():
        print(to_json(made) if flags.json else format_plan(made))
    sys.exit(made.fits is False)


if __name__ == "__main__":
    main()
