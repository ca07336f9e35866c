"""Score a model beside its teacher by a protocol, with every metric that is there.

--protocol takes vfhq, hdtf, celebv, portrait-vbench, i2v-vbench, portrait-tiny or a file of one's
own; by default it is the recipe's `evaluation`. --model takes a run (a folder, a name, or `latest`)
or a folder of weights; --weights the folder of the metrics' networks (docs/evaluation.md), without
which only temporal flickering and the proxies are measured. Give the same command again to go on
with a stopped evaluation.

--report RUN writes one page about a run instead: what was trained on what, its curves, best
checkpoint, videos and scores.
"""

import argparse
from functools import partial

from magicdistill.platform.config.recipe import Recipe, with_protocol
from magicdistill.platform.launch.cli import parse_job, refuse
from magicdistill.platform.runs import logs
from magicdistill.platform.runs.find_model import find_model
from magicdistill.platform.runs.run_directory import RunDirectory


def main() -> None:
    """Parse the command line and run the job."""
    own = argparse.ArgumentParser("python jobs/evaluate.py", add_help=False, allow_abbrev=False)
    own.add_argument("--model", metavar="RUN|DIR")
    own.add_argument("--weights", metavar="DIR")
    own.add_argument("--protocol", metavar="NAME|FILE")
    own.add_argument("--report", metavar="RUN")
    flags, rest = own.parse_known_args()
    args = parse_job(
        "evaluate",
        default_recipe="portrait-tiny",
        description=__doc__ or "",
        arguments=rest,
        adapt=partial(_with, flags.protocol, flags.weights),
        trains=False,
    )
    if flags.report is not None:
        return _report(flags.report, args.recipe.runs)
    if flags.model is None or args.resume is not None or args.recipe.evaluation is None:
        own.error("give --model, --protocol or a recipe that has `evaluation`, and no --resume")

    try:
        student, folder = find_model(args.recipe, flags.model)
        from magicdistill.platform.evaluation.evaluate_protocol import evaluate_model

        evaluate_model(args.recipe, student, folder)
    except FileNotFoundError as error:
        refuse("evaluate", error)


def _report(name: str, runs: str) -> None:
    from magicdistill.platform.reports.run_report import write_run_report

    try:
        logs.say(f"report {write_run_report(RunDirectory.open(name, root=runs))}")
    except FileNotFoundError as error:
        refuse("evaluate", error)


def _with(protocol: str | None, networks: str | None, recipe: Recipe) -> Recipe:
    recipe = with_protocol(recipe, protocol) if protocol else recipe
    if networks is None or recipe.evaluation is None:
        return recipe
    evaluation = recipe.evaluation.model_copy(update={"networks": networks})
    return recipe.model_copy(update={"evaluation": evaluation})


if __name__ == "__main__":
    main()
