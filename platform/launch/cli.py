"""The command line that all jobs share."""

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, make_dataclass
from typing import Annotated, Generic, Literal, NoReturn, TypeVar

import tyro

from magicdistill.models.config import Config
from magicdistill.models.paths import LocalPath, PathError, local_path
from magicdistill.platform.config import command_line, help_pages
from magicdistill.platform.config.command_line import FLAGS_TAKE_VALUES, parse, parse_known
from magicdistill.platform.config.overrides import last_choices, prepare
from magicdistill.platform.config.plugins import load_flagged
from magicdistill.platform.config.recipe import Recipe, differences, load_recipe, to_yaml
from magicdistill.platform.config.recipe_list import demand_job, format_list
from magicdistill.platform.config.validation import RecipeError
from magicdistill.platform.planning.preflight import (
    demand_fitting_weights,
    demand_trainable,
    demand_weights,
)
from magicdistill.platform.runs import logs
from magicdistill.platform.runs.run_directory import RunDirectory

FREE_TO_CHANGE = (
    "runs",
    "mirror",
    "data_root",
    "assets_root",
    "data.num_readers",
    "pairs.num_actors",
    "pairs.gpus_per_actor",
    "pairs.buffer",
    "engine.kind",
    "engine.offload_optimizer",
    "engine.whole_numel",
    "engine.offload_parameters",
    "engine.zero_stage",
    "cluster.address",
    "cluster.logical_cpus",
    "cluster.collective_timeout_s",
    "cluster.max_failures",
    "cluster.preflight",
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
"""Fields that a resumed run may change: they leave the mathematics of a cycle as it is, except
the order in which numbers are added."""
Purpose = Literal["train", "plan", "other"]
"""What a job is to do with its recipe."""
Switch = tyro.conf.FlagCreatePairsOff[bool]
"""A flag that is given without a value."""


class JobFlags(Config):
    """Flags of every job that takes a recipe."""

    recipe: Annotated[LocalPath | None, tyro.conf.arg(metavar="NAME|FILE")] = None
    """Recipe to start from: a name that --list shows, or the path of a YAML file."""
    list_recipes: Annotated[Switch, tyro.conf.arg(name="list")] = False
    """List the recipes that fit this job, with purpose, hardware and time, and exit."""
    resume: Annotated[LocalPath | None, tyro.conf.arg(metavar="RUN[@CYCLE]")] = None
    """Continue a run, by its folder, its name or `latest`, with its own recipe: from its newest
    checkpoint, or from that of a cycle."""
    force_changed: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY ...")] = ()
    """Fields, or groups of them, that a resumed run may change although its results depend on
    them."""
    dry_run: Switch = False
    """Print the resolved recipe and exit."""
    verbose: Annotated[Switch, tyro.conf.arg(aliases=["-v"])] = False
    """Also show the messages of the frameworks."""


F = TypeVar("F", bound=JobFlags)
A = TypeVar("A", bound=Config)


@dataclass(frozen=True)
class JobArguments(Generic[F]):
    """What the user asked a job to do."""

    recipe: Recipe
    """The recipe with its overrides."""
    resume: RunDirectory | None
    """The run to continue."""
    cycle: int | None
    """The cycle whose checkpoint it continues from; None for the newest."""
    flags: F
    """The job's own flags."""

    @property
    def verbose(self) -> bool:
        """Whether the frameworks' messages are shown."""
        return self.flags.verbose


def parse_job(
    job: str,
    flags: type[F] = JobFlags,
    *,
    default_recipe: str,
    description: str,
    arguments: Sequence[str] | None = None,
    adapt: Callable[[F, Recipe], Recipe] = lambda flags, recipe: recipe,
    purpose: Purpose = "train",
) -> JobArguments[F]:
    """Parse the command line of a job and set up its output.

    `arguments` are those of the process by default; `adapt` changes the recipe before its
    overrides. A recipe that a job is to train or to plan must be trainable, and to be trained it
    must have its weights; a dry run refuses what cannot fit, too. Exits with 0 after `--help`,
    `--list` and `--dry-run`, and with 2, naming the field, the value and the fix, where the user is
    mistaken.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with logs.ending_with_its_reader():
            rest, topic = split_help(arguments)
            args = _parse(job, flags, default_recipe, rest, adapt, topic, description)
        if purpose != "other":
            demand_trainable(args.recipe)
            demand_fitting_weights(args.recipe)
        if purpose == "train":
            _demand_start(args.recipe, dry_run=args.flags.dry_run)
    except (RecipeError, PathError, FileNotFoundError) as error:
        refuse(job, error)
    if args.flags.dry_run:
        with logs.ending_with_its_reader():
            print(to_yaml(args.recipe), end="")
        sys.exit(0)
    logs.configure(verbose=args.verbose)
    return args


def parse_arguments(
    job: str, form: type[A], description: str | None, arguments: Sequence[str] | None = None
) -> A:
    """Parse the command line of a job that takes no overrides; exits as `parse_job` does."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    rest, topic = split_help(arguments)
    with logs.ending_with_its_reader():
        if topic is not None:
            print(_heading(job, description or "") + help_pages.form_page(form, width()))
            sys.exit(0)
        return parse(form, rest, prog=f"python jobs/{job}.py")


def _demand_start(recipe: Recipe, *, dry_run: bool) -> None:
    """Refuse a recipe whose weights are missing or that cannot fit.

    A dry run of a recipe for GPUs only warns of missing weights: it is the way to try such a recipe
    on a machine that is not the cluster's.
    """
    try:
        demand_weights(recipe)
    except RecipeError as error:
        if not (dry_run and recipe.cluster.gpus_per_worker):
            raise
        print(f"a run on this machine would be refused:\n{error}", file=sys.stderr)
    if dry_run and recipe.cluster.gpus_per_worker:
        from magicdistill.platform.planning.plan import demand_fit  # imports torch

        demand_fit(recipe)


def split_help(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """Return the arguments without `--help TOPIC`, and the topic: empty for none, None for no
    `--help`."""
    rest = list(arguments)
    place = next((i for i, word in enumerate(rest) if word in ("--help", "-h")), None)
    if place is None:
        return rest, None
    del rest[place]
    named = place < len(rest) and not rest[place].startswith("-")
    return rest, rest.pop(place) if named else ""


def width() -> int:
    """Return how many columns a page has: those of the terminal, from 60 to 120."""
    return min(120, max(60, shutil.get_terminal_size().columns))


def _parse(
    job: str,
    flags: type[F],
    default_recipe: str,
    arguments: Sequence[str],
    adapt: Callable[[F, Recipe], Recipe],
    topic: str | None,
    description: str,
) -> JobArguments[F]:
    load_flagged(arguments)
    own, _ = parse_known(flags, arguments, prog=f"python jobs/{job}.py")
    if own.list_recipes:
        print(format_list(job, default_recipe, width()))
        sys.exit(0)
    resume, stored = _start(job, own, default_recipe, arguments)
    start = prepare(adapt(own, stored), arguments)
    if topic is not None:
        name = own.recipe or default_recipe
        print(_help(job, flags, description, name, start, topic))
        sys.exit(0)
    untitled = tyro.conf.arg(name="", help="")  # without a text, tyro parses source to find one
    fields = [
        ("flags", Annotated[flags, untitled]),
        ("recipe", Annotated[Recipe, untitled, FLAGS_TAKE_VALUES]),
    ]
    form = make_dataclass("Form", fields, frozen=True)
    given = last_choices(start, arguments)
    parsed = parse(form, given, default=form(flags(), start), prog=f"python jobs/{job}.py")
    cycle = split_cycle(own.resume or "")[1]
    if resume is not None:
        _check_changes(stored, parsed.recipe, own.force_changed)
        if cycle is not None:
            from magicdistill.platform.checkpoints.checkpoints import Checkpoints  # imports torch

            Checkpoints.of(resume, parsed.recipe, logs.say).demand(cycle)
    return JobArguments(parsed.recipe, resume, cycle, parsed.flags)


def split_cycle(run: str) -> tuple[str, int | None]:
    """Return the run of RUN@CYCLE and the cycle, if there is one."""
    name, _, cycle = run.rpartition("@")
    return (name, int(cycle)) if name and cycle.isdecimal() else (run, None)


def _start(
    job: str, own: JobFlags, default_recipe: str, arguments: Sequence[str]
) -> tuple[RunDirectory | None, Recipe]:
    """Return the run to continue and the recipe that overrides are laid over."""
    if own.resume is None or own.recipe is not None:
        name = own.recipe or default_recipe
        demand_job(name, job)
        recipe = load_recipe(name)
        if own.resume is not None:
            raise RecipeError("--resume brings the run's own recipe: leave --recipe out")
        return None, recipe
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--runs", default=load_recipe(default_recipe).runs)
    runs = first.parse_known_args(list(arguments))[0].runs
    try:
        runs = local_path(runs)
    except PathError as error:
        raise RecipeError(f"--runs {error}") from error
    run = RunDirectory.open(split_cycle(own.resume)[0], root=runs)
    return run, run.recipe()


def _help(
    job: str, flags: type[JobFlags], description: str, name: str, recipe: Recipe, topic: str
) -> str:
    """Return the page of `--help`, which is short without a topic."""
    top, columns = help_pages.root(recipe), width()
    everything = help_pages.flags(help_pages.root(flags()))
    common = {flag.name for flag in help_pages.flags(help_pages.root(JobFlags()))}
    own = [flag for flag in everything if flag.name not in common]
    if topic:
        page = help_pages.page(top, topic, columns)
        if topic != "all":
            return page
    blocks = [
        _heading(job, description, "[--recipe NAME|FILE] [--section.field VALUE ...]").rstrip()
    ]
    if own:
        blocks.append("Flags of this job:\n" + help_pages.format_flags(own, columns, present=False))
    shared = [flag for flag in everything if flag.name in common]
    blocks.append("Flags of every job:\n" + help_pages.format_flags(shared, columns, present=False))
    if topic:
        return "\n\n".join([*blocks, page])
    blocks.append(
        f"Flags of the recipe, with the values of {name}:\n"
        + help_pages.format_flags(help_pages.flags(top), columns)
    )
    listed = help_pages.index(help_pages.sections(top), columns)
    blocks.append(f"Sections of the recipe, each with a page that shows its flags:\n{listed}")
    blocks.append(
        help_pages.fill_text(
            "Dots lead further in: --help data.policy is the page of a section inside another, "
            "--help method.alpha_weak that of one flag. --help all prints everything.",
            columns,
        )
    )
    return "\n\n".join(blocks)


def _heading(job: str, description: str, usage: str = "[FLAGS]") -> str:
    paragraphs = [
        help_pages.fill_text(text, width()) if not text.startswith("    ") else text
        for text in description.strip("\n").split("\n\n")
    ]
    return "\n\n".join([*paragraphs, f"  python jobs/{job}.py {usage}"]).strip() + "\n\n"


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


@contextmanager
def refusing(job: str) -> Iterator[None]:
    """Exit with 2 where the body finds a user's mistake, such as a file that does not exist."""
    try:
        yield
    except Exception as error:
        if logs.is_mistake(error):
            refuse(job, error)
        raise


def refuse(job: str, error: Exception) -> NoReturn:
    """Exit with 2 after a user's mistake."""
    command_line.refuse(f"python jobs/{job}.py", error)
