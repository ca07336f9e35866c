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
from magicdistill.platform.runs.run_directory import RunDirectory


class Flags(JobFlags):
    """Flags of this job."""

    model: Annotated[tuple[LocalPath, ...], tyro.conf.arg(metavar="RUN|DIR|NAME=RUN")] = ()
    """Models to score: a run (a folder, a name, or `latest`) or a folder of weights, which stands
    beside its teacher. Several have names of their own and are compared with each other alone:
    NAME=RUN_OR_DIR[,steps=N][,guidance=N][,shift=N]."""
    pipeline: Annotated[tuple[LocalPath, ...], tyro.conf.arg(metavar="NAME=DIR")] = ()
    """Image-to-video pipelines of diffusers to score beside them, each with its class's own
    settings: NAME=DIR[,steps=N][,guidance=N][,fps=N]."""
    videos: Annotated[tuple[LocalPath, ...], tyro.conf.arg(metavar="NAME=DIR")] = ()
    """Folders of finished MP4s to score beside them, named as --export_inputs names them."""
    export_inputs: Annotated[LocalPath | None, tyro.conf.arg(metavar="DIR")] = None
    """Score nothing: write the protocol's first frames, prompts and seeds, with the name that each
    video must have for --videos."""
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
    chosen = flags.model or flags.pipeline or flags.videos or flags.export_inputs
    if not chosen or args.resume is not None or args.recipe.evaluation is None:
        message = (
            "give --model, --pipeline or --videos, and --protocol or a recipe that has "
            "`evaluation`, and no --resume"
        )
        refuse("evaluate", RecipeError(message))

    with refusing("evaluate"):
        demand_fitting_weights(args.recipe, trained=False)
        if flags.export_inputs is not None:
            from magicdistill.platform.evaluation.evaluate_protocol import export_protocol

            return export_protocol(args.recipe, flags.export_inputs)
        from magicdistill.platform.evaluation.line_up import line_up

        ways, folder = line_up(args.recipe, flags.model, flags.pipeline, flags.videos)
        demand_output_folder(folder, "--runs")
        from magicdistill.platform.evaluation.evaluate_protocol import evaluate_model

        evaluate_model(args.recipe, ways, folder)


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
