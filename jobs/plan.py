"""Tell what a recipe needs: memory by role and part, time, data, and whether it fits.

--json prints it for machines. --mfu SHARE is the share of the GPUs' peak that computation reaches;
0.4 by default, what the papers' 10 minutes for 28 steps on one H100 come to.
"""

import argparse
import sys

from magicdistill.platform.cli import parse_job


def main() -> None:
    """Parse the command line and print the plan; exit with 1 where the recipe does not fit."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--json", action="store_true")
    own.add_argument("--mfu", type=float)
    flags, rest = own.parse_known_args()
    args = parse_job(
        "plan",
        default_recipe="magic141-4step-40xh100",
        description=__doc__ or "",
        arguments=rest,
    )

    from magicdistill.platform.overrides import RecipeError
    from magicdistill.platform.plan_table import format_plan, to_json
    from magicdistill.platform.planning import PAPER_MFU, plan

    try:
        made = plan(args.recipe, mfu=PAPER_MFU if flags.mfu is None else flags.mfu)
    except RecipeError as error:
        sys.exit(str(error))
    print(to_json(made) if flags.json else format_plan(made))
    sys.exit(made.fits is False)


if __name__ == "__main__":
    main()
