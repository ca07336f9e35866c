"""The frame of a job: its run directory, tracking and cluster around the steps themselves."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from threading import Thread

from magicdistill.data_pipeline.io.storage import place
from magicdistill.platform.cluster.ray_cluster import joined_address, ray_cluster
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.config.sections import ClusterConfig
from magicdistill.platform.runs import logs
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.tracking.prometheus import published
from magicdistill.platform.tracking.run_description import describe
from magicdistill.platform.tracking.tracker import Tracker

STEPS, PAIRS = "magicdistill.platform.launch.steps", "magicdistill.platform.data.noise_data_pairs"


def run_job(recipe: Recipe, resume: RunDirectory | None = None) -> RunDirectory:
    """Run a recipe, or continue a run of it; every step that is already done is skipped."""
    run = resume or RunDirectory.create(recipe.runs, recipe)
    run.store(recipe)
    run.stop_path.unlink(missing_ok=True)
    logs.say(f"run {run.path}")
    with (
        resume_hint(f"--resume {run.path}"),
        Tracker.start(recipe.tracking, run) as tracker,
        importing(STEPS),
        announced_cluster(recipe.cluster),
        followed(run, tracker, watch_machine=joined_address(recipe.cluster) is None),
    ):
        from magicdistill.platform.launch.steps import perform

        tracker.note(describe(run))
        perform(recipe, run, tracker)
    return run


def save_pairs(recipe: Recipe, folder: str) -> None:
    """Make the pairs that a recipe trains on, but for those made already, and store them."""
    with resume_hint("the same command"), importing(PAIRS), announced_cluster(recipe.cluster):
        from magicdistill.platform.launch.steps import store_pairs

        version = store_pairs(recipe, place(folder))
    logs.say(f"pairs  {version}; train on them with --pairs.stored {version}")


@contextmanager
def importing(module: str) -> Iterator[None]:
    """Import a module in the background: the packages take as long as Ray's start."""
    Thread(target=_import, args=(module,), daemon=True).start()
    yield


def _import(module: str) -> None:
    gc.disable()  # what is imported stays: searching it for garbage is a tenth of the time
    try:
        import_module(module)
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def resume_hint(way: str) -> Iterator[None]:
    """Say how to continue where the body is stopped."""
    try:
        yield
    except BaseException:
        logs.say(f"stopped; continue with {way}")
        raise


@contextmanager
def announced_cluster(config: ClusterConfig) -> Iterator[None]:
    """Say what the Ray cluster is, and keep it while the body runs."""
    logs.say("starting Ray")
    with ray_cluster(config) as shape:
        pages = f", dashboard http://{shape.dashboard_url}" if shape.dashboard_url else ""
        logs.say(f"Ray has {shape.num_nodes} node(s), {shape.num_cpus:g} logical CPUs{pages}")
        yield


@contextmanager
def followed(run: RunDirectory, tracker: Tracker, *, watch_machine: bool = False) -> Iterator[None]:
    """Say the run's progress lines, track and publish its metrics while the body runs.

    `watch_machine` also tracks this machine's load: that of the workers on a local cluster.
    """
    mirror = tracker.mirror(watch_machine=watch_machine)
    with logs.follow(run.progress_path), mirror, published(run):
        yield
