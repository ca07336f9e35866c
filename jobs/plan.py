"""Plan what a recipe needs: memory by role and part, time, data, and whether it fits."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from pydantic import NonNegativeFloat

from magicdistill.models.paths import LocalFile
from magicdistill.platform.config.overrides import RecipeError
from magicdistill.platform.launch.cli import JobFlags, Switch, parse_job, refuse
from magicdistill.platform.runs import logs

if TYPE_CHECKING:
    from magicdistill.platform.planning.plan import Plan


class Flags(JobFlags):
    """Flags of this job."""

    json_output: Annotated[Switch, tyro.conf.arg(name="json")] = False
    """Print the plan as JSON, for machines."""
    mfu: Annotated[float | None, tyro.conf.arg(metavar="SHARE")] = None
    """Share of the GPUs' peak that everything reaches, instead of rates of each kernel."""
    rates: Annotated[LocalFile | None, tyro.conf.arg(metavar="FILE")] = None
    """Rates of kernels that `make gpu` measured; by default those in benchmarks/results/gpu.json
    where they are of the recipe's GPUs, else published and estimated ones."""
    time_line: Annotated[LocalFile | None, tyro.conf.arg(metavar="PNG")] = None
    """Also draw a cycle as a time line, with its seconds on 8 to 80 GPUs."""
    price_per_gpu_hour: Annotated[NonNegativeFloat | None, tyro.conf.arg(metavar="PRICE")] = None
    """Price of one GPU for an hour, in any currency: also print what the run costs."""
    check: Switch = False
    """Try what a run needs instead: weights, sources, disk, GPUs, tokens, tracking server. Prints
    a line for each and exits with 2 where something is wrong."""
    propose: Switch = False
    """Also print the fastest layouts that fit: recomputation, sequence groups, micro-batches, and
    under ZeRO-3 the size up to which parameters stay whole."""
    rehearse: Switch = False
    """Run one update of each role in full size instead, on tensors that have shapes and no numbers:
    gradients, operations and memory beside the plan's, in minutes on one CPU. Exits with 1 where
    something is wrong or more than 5 % off."""


def main() -> None:
    """Parse the command line and print the plan; exit with 1 where the recipe does not fit."""
    args = parse_job(
        "plan",
        Flags,
        default_recipe="magic141-4step-40xh100",
        description=__doc__ or "",
        purpose="plan",
    )
    flags = args.flags
    if flags.mfu is not None and flags.rates is not None:
        refuse("plan", RecipeError("give one of --mfu and --rates"))
    if flags.json_output and flags.propose:
        refuse("plan", RecipeError("give one of --json and --propose"))
    if flags.check:
        from magicdistill.platform.launch.start_checks import report_checks

        sys.exit(2 * (not report_checks(args.recipe)))

    if flags.rehearse:
        from magicdistill.platform.planning.rehearsal_report import report_rehearsal

        with logs.ending_with_its_reader():
            try:
                sys.exit(not report_rehearsal(args.recipe, logs.say, print))
            except RecipeError as error:
                refuse("plan", error)

    from magicdistill.platform.planning.gpu_rates import find_rates
    from magicdistill.platform.planning.plan import plan
    from magicdistill.platform.planning.plan_table import format_plan, to_json

    try:
        made = plan(args.recipe, mfu=flags.mfu, rates=find_rates(flags.rates, args.recipe))
        if flags.time_line is not None:
            draw(made, flags.time_line)
    except RecipeError as error:
        refuse("plan", error)
    with logs.ending_with_its_reader():
        show = to_json if flags.json_output else format_plan
        print(show(made, flags.price_per_gpu_hour))
        if flags.propose:
            from magicdistill.platform.planning.proposals import describe_proposals, propose

            print(*describe_proposals(made, propose(made)), sep="\n")
    sys.exit(made.fits is False)


def draw(made: "Plan", file: Path) -> None:
    """Draw the time line of a plan; raises RecipeError for one on CPUs."""
    from magicdistill.platform.planning.time_line_picture import draw_time_line

    if made.gpu is None:
        raise RecipeError(
            f"--time_line {file}: {made.recipe.name} runs on CPUs; give a recipe for GPUs, or "
            "--cluster.gpus_per_worker 1"
        )
    draw_time_line(made, file)


if __name__ == "__main__":
    main()
