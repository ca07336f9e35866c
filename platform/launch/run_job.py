"""The frame of a job: its run directory, tracking and cluster around the steps themselves."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

from magicdistill.data_pipeline import console
from magicdistill.data_pipeline.io.storage import place
from magicdistill.data_pipeline.io.user_files import demand_output_folder
from magicdistill.platform.cluster.ray_cluster import announced_cluster, joined_address
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.launch.start_checks import demand_cluster
from magicdistill.platform.launch.steps import perform, store_pairs
from magicdistill.platform.runs import logs
from magicdistill.platform.runs.logs import resume_hint
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.runs.run_lock import RunInUseError, locked
from magicdistill.platform.tracking.events import Destination, FinalModel
from magicdistill.platform.tracking.prometheus import published
from magicdistill.platform.tracking.run_description import describe
from magicdistill.platform.tracking.tracker import Tracker


def run_job(
    recipe: Recipe, resume: RunDirectory | None = None, cycle: int | None = None
) -> RunDirectory:
    """Run a recipe, or continue a run of it; every step that is already done is skipped.

    A run goes on from its newest checkpoint, or from that of `cycle`. Exits with 2 where another
    job writes in it.
    """
    run = resume or RunDirectory.create(recipe.runs, recipe)
    with sole_writer(run):
        if cycle is not None:
            go_back(run, recipe, cycle)
        _run(recipe, run)
    return run


def _run(recipe: Recipe, run: RunDirectory) -> None:
    run.store(recipe)
    run.stop_path.unlink(missing_ok=True)
    logs.say(f"run {run.path}")
    with (
        _resume_hint(run),
        Tracker.start(recipe.tracking, run, register=register_model) as tracker,
        announced_cluster(recipe.cluster),
        followed(run, tracker, watch_machine=joined_address(recipe.cluster) is None),
    ):
        tracker.note(describe(run))
        demand_cluster(recipe)
        perform(recipe, run, tracker)


@contextmanager
def sole_writer(run: RunDirectory) -> Iterator[None]:
    """Keep other jobs out of a run while the body runs; exits with 2 where one is in it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(run))
        except RunInUseError as error:
            print(error, file=sys.stderr)
            sys.exit(2)
        yield


def go_back(run: RunDirectory, recipe: Recipe, cycle: int) -> None:
    """Let a run go on from the checkpoint of a cycle; nothing of what came later is deleted.

    Later checkpoints, and copies of the metrics, go to a folder of their own in the run. The
    workers drop the rows of later cycles when they start, as after every restart.
    """
    from magicdistill.platform.checkpoints.checkpoints import Checkpoints  # imports torch

    aside = run.set_aside / f"{datetime.now():%Y%m%d-%H%M%S}"
    names = Checkpoints.of(run, recipe, logs.say).go_back(cycle, aside)
    aside.mkdir(parents=True, exist_ok=True)
    for path in (run.metrics_path, run.checkpoint_scores_path):
        if path.exists():
            shutil.copy2(path, aside)
    left = f"{', '.join(names)} and the metrics up to here" if names else "the metrics up to here"
    logs.say(f"going back to cycle {cycle}; {left} are kept in {aside}")


@contextmanager
def _resume_hint(run: RunDirectory) -> Iterator[None]:
    """Say how to continue where the body is stopped: `--resume` needs a checkpoint."""
    try:
        yield
    except BaseException as error:
        console.close_bars()
        if run.has_checkpoint:
            logs.say(f"stopped; continue with --resume {run.path}")
        elif not logs.is_mistake(error):
            logs.say("stopped before the first checkpoint; give the same command again")
        raise


def save_pairs(recipe: Recipe, folder: str) -> None:
    """Make the pairs that a recipe trains on, except those made already, and store them."""
    root = place(folder)
    if isinstance(root, Path):
        demand_output_folder(root, "--save_pairs")
    with resume_hint("the same command"), announced_cluster(recipe.cluster):
        version = store_pairs(recipe, root)
    logs.say(f"pairs  {version}; train on them with --pairs.stored {version}")


def register_model(model: FinalModel, to: Destination) -> None:
    """Add a finished generator to the registry; imports the networks' packages."""
    from magicdistill.platform.inference.mlflow_model import register

    register(model, to)


@contextmanager
def followed(run: RunDirectory, tracker: Tracker, *, watch_machine: bool = False) -> Iterator[None]:
    """Print the run's progress lines, track and publish its metrics while the body runs.

    `watch_machine` also tracks this machine's load: that of the workers on a local cluster.
    """
    mirror = tracker.mirror(watch_machine=watch_machine)
    with (
        logs.follow(run.progress_path),
        mirror,
        published(run, num_unsent=tracker.num_unsent),
    ):
        yield
