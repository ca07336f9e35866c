"""Score a model beside its teacher by a protocol, with every metric that can be measured.

Give the same command again to go on with a stopped evaluation.
"""

from typing import Annotated

import tyro

from magicdistill.data_pipeline.io.user_files import demand_output_folder
from magicdistill.models.paths import LocalPath
from magicdistill.platform.config.overrides import RecipeError
from magicdistill.platform.config.recipe import Recipe, with_protocol
from magicdistill.platform.launch.cli import JobFlags, parse_job, refuse, refusing
from magicdistill.platform.planning.preflight import demand_fitting_weights
from magicdistill.platform.runs import logs
from magicdistill.platform.runs.find_model import find_model
from magicdistill.platform.runs.run_directory import RunDirectory


class Flags(JobFlags):
    """Flags of this job."""

    model: Annotated[LocalPath | None, tyro.conf.arg(metavar="RUN|DIR")] = None
    """Model to score: a run (a folder, a name, or `latest`) or a folder of weights."""
    weights: Annotated[LocalPath | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of the metrics' networks (docs/evaluation.md), without which only temporal flickering
    and the proxies are measured."""
    protocol: Annotated[LocalPath | None, tyro.conf.arg(metavar="NAME|FILE")] = None
    """Protocol to score by: vfhq, hdtf, celebv, portrait-vbench, i2v-vbench, portrait-tiny or a
    file of your own; by default it is the recipe's `evaluation`."""
    report: Annotated[LocalPath | None, tyro.conf.arg(metavar="RUN")] = None
    """Score nothing: write one page about a run, with what was trained on what, its curves, best
    checkpoint, videos and scores."""


def main() -> None:
    """Parse the command line and run the job."""
    args = parse_job(
        "evaluate",
        Flags,
        default_recipe="portrait-tiny",
        description=__doc__ or "",
        adapt=_with,
        purpose="other",
    )
    flags = args.flags
    if flags.report is not None:
        return _report(flags.report, args.recipe.runs)
    if flags.model is None or args.resume is not None or args.recipe.evaluation is None:
        message = "give --model, --protocol or a recipe that has `evaluation`, and no --resume"
        refuse("evaluate", RecipeError(message))

    with refusing("evaluate"):
        demand_fitting_weights(args.recipe, trained=False)
        student, folder = find_model(args.recipe, flags.model)
        demand_output_folder(folder, "--runs")
        from magicdistill.platform.evaluation.evaluate_protocol import evaluate_model

        evaluate_model(args.recipe, student, folder)


def _report(name: str, runs: str) -> None:
    from magicdistill.platform.reports.run_report import write_run_report

    with refusing("evaluate"):
        logs.say(f"report {write_run_report(RunDirectory.open(name, root=runs))}")


def _with(flags: Flags, recipe: Recipe) -> Recipe:
    recipe = with_protocol(recipe, flags.protocol) if flags.protocol else recipe
    if flags.weights is None or recipe.evaluation is None:
        return recipe
    evaluation = recipe.evaluation.model_copy(update={"networks": flags.weights})
    return recipe.model_copy(update={"evaluation": evaluation})


if __name__ == "__main__":
    main()
