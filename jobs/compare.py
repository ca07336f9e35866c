"""Train and judge several methods from one teacher; write a table, curves and pictures.

A run that is finished is kept, one that was interrupted goes on: give the same command again.
"""

from typing import Annotated

import tyro

from magicdistill.models.config import Config
from magicdistill.models.paths import LocalPath
from magicdistill.platform.comparison.comparison_recipe import (
    ComparisonRecipe,
    check_names,
    describe_plan,
    load_comparison,
)
from magicdistill.platform.config.overrides import RecipeError
from magicdistill.platform.config.recipe_list import demand_job, format_list
from magicdistill.platform.launch.cli import Switch, parse_arguments, refuse, refusing, width
from magicdistill.platform.runs import logs


class Arguments(Config):
    """Flags of this job."""

    recipe: Annotated[LocalPath, tyro.conf.arg(metavar="NAME|FILE")] = "portrait-tiny-compare"
    """Comparison to run: a name in jobs/recipes/comparisons, or a YAML file."""
    list_recipes: Annotated[Switch, tyro.conf.arg(name="list")] = False
    """List the comparisons that come with the project, with purpose, hardware and time."""
    only: tuple[str, ...] = ()
    """Methods and ablations to run; the report has all that is finished."""
    seeds: tuple[int, ...] = ()
    """Seeds of the methods, instead of the recipe's."""
    runs: LocalPath | None = None
    """Folder that receives the runs, instead of the recipe's."""
    report: Switch = False
    """Train nothing; make tables, curves and pictures of what is finished."""
    dry_run: Switch = False
    """List the runs with what they change in the base recipe, and exit."""
    verbose: Annotated[Switch, tyro.conf.arg(aliases=["-v"])] = False
    """Also show the messages of the frameworks."""


def main() -> None:
    """Parse the command line and run the job."""
    args = parse_arguments("compare", Arguments, __doc__)
    if args.list_recipes:
        with logs.ending_with_its_reader():
            print(format_list("compare", Arguments().recipe, width()))
        return
    try:
        demand_job(args.recipe, "compare")
        comparison = _comparison(args)
    except RecipeError as error:
        refuse("compare", error)
    if args.dry_run:
        with logs.ending_with_its_reader():
            print(describe_plan(comparison, args.only))
        return
    logs.configure(verbose=args.verbose)

    from magicdistill.platform.comparison.run_comparison import report_comparison, run_comparison

    with refusing("compare"):
        if args.report:
            report_comparison(comparison)
        else:
            run_comparison(comparison, args.only)


def _comparison(args: Arguments) -> ComparisonRecipe:
    given = {"seeds": args.seeds, "runs": args.runs}
    comparison = load_comparison(args.recipe, {k: v for k, v in given.items() if v})
    check_names(comparison, args.only)
    return comparison


if __name__ == "__main__":
    main()
