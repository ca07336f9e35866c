"""The command line that all jobs share."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import tyro

from magicdistill.platform.config.overrides import (
    FLAGS_TAKE_VALUES,
    RecipeError,
    alternatives,
    choose_alternatives,
    parse,
)
from magicdistill.platform.config.plugins import load_flagged
from magicdistill.platform.config.recipe import (
    Recipe,
    differences,
    load_recipe,
    recipe_names,
    to_yaml,
)
from magicdistill.platform.runs import logs
from magicdistill.platform.runs.run_directory import RunDirectory

FREE_TO_CHANGE = (
    "runs",
    "mirror",
    "data_root",
    "data.num_readers",
    "pairs.num_actors",
    "pairs.gpus_per_actor",
    "pairs.buffer",
    "engine.kind",
    "engine.offload_optimizer",
    "engine.offload_parameters",
    "engine.zero_stage",
    "cluster.address",
    "cluster.logical_cpus",
    "cluster.max_failures",
    "cluster.dashboard",
    "cluster.num_workers",
    "cluster.sequence_parallel",
    "cluster.threads_per_worker",
    "kernels",
    "tracking",
    "health",
    "evaluation.num_scored",
    "evaluation.scored_by",
    "evaluation.actor_gpus",
    "evaluation.networks",
    "schedule.num_cycles",
    "schedule.checkpoint_every",
    "schedule.keep_checkpoints",
    "schedule.num_micro_batches",
    "schedule.sample_every",
)
"""Fields that a resumed run may change: they leave the mathematics of a cycle as it is, but for
the order in which numbers are added and, under bf16, an engine's precision of master weights."""


@dataclass(frozen=True)
class JobArguments:
    """What the user asked a job to do."""

    recipe: Recipe
    resume: RunDirectory | None
    verbose: bool


@dataclass(frozen=True)
class _Form:
    """The flags of a job; the recipe's own fields stand beside them without a prefix."""

    recipe_name: Annotated[
        str, tyro.conf.arg(name="recipe", metavar="NAME|FILE", help="Recipe to start from.")
    ]
    recipe: Annotated[Recipe, tyro.conf.arg(name=""), FLAGS_TAKE_VALUES]
    resume: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="RUN", help="Continue a run, by folder or name, or `latest`, with its recipe."
        ),
    ] = None
    force_changed: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            aliases=["--force-changed"],
            metavar="KEY ...",
            help="Fields, or groups of them, that a resumed run may change all the same.",
        ),
    ] = ()
    dry_run: Annotated[
        tyro.conf.FlagCreatePairsOff[bool],
        tyro.conf.arg(aliases=["--dry-run"], help="Print the resolved recipe and exit."),
    ] = False
    verbose: Annotated[
        tyro.conf.FlagCreatePairsOff[bool],
        tyro.conf.arg(aliases=["-v"], help="Show what the frameworks have to say."),
    ] = False


def parse_job(
    job: str,
    *,
    default_recipe: str,
    description: str,
    arguments: Sequence[str] | None = None,
    adapt: Callable[[Recipe], Recipe] = lambda recipe: recipe,
    trains: bool = True,
) -> JobArguments:
    """Parse the command line of a job and set up its output.

    `arguments` are those of the process by default; `adapt` changes the recipe before its
    overrides. A dry run of a job that `trains` refuses what cannot fit. Exits with 0 after
    `--help` and `--dry-run`, and with 2, naming the field, the value and the fix, where the user
    is mistaken.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with logs.ending_with_its_reader():
            args, dry_run = _parse(job, default_recipe, description, arguments, adapt)
        if trains and args.recipe.evaluation and not args.recipe.evaluation.has_clips:
            raise RecipeError(
                "evaluation: a training is judged beside held-out clips, and these are pictures; "
                "give clips or null here, and the pictures to jobs/evaluate.py --protocol"
            )
        if dry_run and trains and args.recipe.cluster.gpus_per_worker:
            from magicdistill.platform.planning.plan import demand_fit  # imports torch

            demand_fit(args.recipe)
    except (RecipeError, FileNotFoundError) as error:
        refuse(job, error)
    if dry_run:
        with logs.ending_with_its_reader():
            print(to_yaml(args.recipe), end="")
        sys.exit(0)
    logs.configure(verbose=args.verbose)
    return args


def _parse(
    job: str,
    default_recipe: str,
    description: str,
    arguments: Sequence[str],
    adapt: Callable[[Recipe], Recipe],
) -> tuple[JobArguments, bool]:
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe")
    first.add_argument("--resume")
    first.add_argument("--runs")
    early, _ = first.parse_known_args(list(arguments))
    load_flagged(arguments)
    start = load_recipe(early.recipe or default_recipe)
    resume = None
    if early.resume is not None:
        if early.recipe is not None:
            raise RecipeError("--resume brings the run's own recipe: leave --recipe out")
        resume = RunDirectory.open(early.resume, root=early.runs or start.runs)
        start = load_recipe(resume.recipe_path)
    stored, start = start, choose_alternatives(adapt(start), arguments)
    form: Any = parse(
        _Form,
        arguments,
        default=_Form(early.recipe or default_recipe, start),
        prog=f"python jobs/{job}.py",
        description=_describe(description, start),
    )
    if resume is not None:
        _check_changes(stored, form.recipe, form.force_changed)
    return JobArguments(form.recipe, resume, form.verbose), form.dry_run


def _check_changes(stored: Recipe, wanted: Recipe, forced: Sequence[str]) -> None:
    """Refuse to go on from a checkpoint with another recipe than the one that made it."""
    allowed = tuple(f"{key}." for key in (*FREE_TO_CHANGE, *forced))
    changes = {
        name: f"{name}: {old} -> {new}"
        for name, (old, new) in differences(stored, wanted).items()
        if not f"{name}.".startswith(allowed)
    }
    if changes:
        raise RecipeError(
            "the run's checkpoints were made with another recipe:\n  "
            + "\n  ".join(changes.values())
            + f"\nStart a new run, or add --force-changed {' '.join(changes)}"
        )


def _describe(description: str, recipe: Recipe) -> str:
    choices = "\n".join(
        f"  --{name} {{{','.join(sorted(tags))}}}" for name, tags in alternatives(recipe).items()
    )
    return (
        f"{description.strip()}\n\nRecipes: {', '.join(recipe_names())}.\n\n"
        f"Below are the fields of the recipe with its present values. "
        f"These flags swap a whole section:\n{choices}"
    )


def refuse(job: str, error: Exception) -> NoReturn:
    """Exit with 2 after a user's mistake."""
    print(f"{error}\nSee python jobs/{job}.py --help", file=sys.stderr)
    sys.exit(2)
