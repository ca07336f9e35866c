"""Train and evaluate every run of a comparison; finished runs are not repeated."""

import hashlib
from collections.abc import Collection, Iterable

import yaml
from pydantic_core import to_json

from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.io.whole_files import write_text
from magicdistill.models.checksums import digest_weights
from magicdistill.models.locations import find_weights
from magicdistill.platform.cluster.ray_cluster import announced_cluster
from magicdistill.platform.comparison.comparison_recipe import (
    ComparisonRecipe,
    PlannedRun,
    base_recipe,
    plan,
    tuning_plan,
)
from magicdistill.platform.comparison.comparison_report import Tuned, write_report
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.config.renamed import with_former_names
from magicdistill.platform.data.prepare import prepare_latents
from magicdistill.platform.evaluation.evaluate_run import Evaluators
from magicdistill.platform.inference.variants import own_variant
from magicdistill.platform.launch.run_job import followed, sole_writer
from magicdistill.platform.launch.steps import (
    MODEL,
    initial_weights,
    report,
    tell_lineage,
    train,
)
from magicdistill.platform.runs import logs
from magicdistill.platform.runs.logs import resume_hint
from magicdistill.platform.runs.run_directory import RunDirectory, resolve_root
from magicdistill.platform.tracking.run_description import describe
from magicdistill.platform.tracking.tracker import Tracker

IRRELEVANT = {"name", "runs", "mirror", "tracking", "cluster"}
"""Fields of a recipe that do not change the result of a run."""


def run_comparison(comparison: ComparisonRecipe, only: Collection[str] = ()) -> RunDirectory:
    """Tune, train and evaluate what is missing, then report; return the comparison's folder."""
    home, recipe = _home(comparison), base_recipe(comparison)
    logs.say(f"comparison {home.path}")
    with Tracker.start(recipe.tracking, home, purpose="comparison") as tracker:
        with resume_hint("the same command"), announced_cluster(recipe.cluster):
            shared = ComparisonRuns(recipe, home)
            tuned = [
                Tuned(method, {rate: shared.run(trial) for rate, trial in trials.items()})
                for method, trials in tuning_plan(comparison, only).items()
            ]
            runs = plan(comparison, _rates(tuned), only)
            for number, planned in enumerate(runs, start=1):
                logs.say(f"{number} of {len(runs)}")
                shared.run(planned)
        _report(comparison, home, tracker)
    return home


def report_comparison(comparison: ComparisonRecipe) -> RunDirectory:
    """Make tables, curves and pictures again of the runs that are finished."""
    home = _home(comparison)
    tracking = base_recipe(comparison).tracking
    with Tracker.start(tracking, home, purpose="comparison") as tracker:
        _report(comparison, home, tracker)
    return home


def find_run(recipe: Recipe) -> RunDirectory | None:
    """Return the run, finished or not, that has this recipe and these weights.

    The code is not part of the name: delete runs that should be repeated with changed code.
    """
    name = digest(recipe)
    paths = resolve_root(recipe.runs).glob(f"*-{name}")
    # its own name before all others: people's copies end in the same digest
    found = sorted(paths, key=lambda path: (path.name != f"{recipe.name}-{name}", path.name))
    return RunDirectory(found[0]) if found else None


def digest(recipe: Recipe) -> str:
    """Return a name for a run's recipe and the weights it reads."""
    values = recipe.model_dump(mode="json", exclude=IRRELEVANT)
    text = to_json(with_former_names(values)).decode()
    fields = initial_weights(recipe)
    weights = [digest_weights(find_weights(place, field)) for field, place in fields.items()]
    return hashlib.sha256(" ".join([text, *weights]).encode()).hexdigest()[:8]


class ComparisonRuns:
    """Runs the runs of a comparison, which share prepared data and evaluators."""

    def __init__(self, recipe: Recipe, home: RunDirectory) -> None:
        self.evaluators = Evaluators(recipe)
        self.home = home
        self._prepared: dict[str, tuple[AnyPath, AnyPath, dict[str, dict[str, str]]]] = {}

    def run(self, planned: PlannedRun) -> RunDirectory:
        """Return the finished run; train, continue or evaluate it as far as that is missing."""
        recipe = planned.recipe
        found, title = find_run(recipe), f"{planned.label}, seed {recipe.seed}"
        if found is not None and found.scores_path.exists():
            logs.say(f"{title}: finished already, {found.path.name}")
            return found
        logs.say(f"{title}: {'continuing' if found else 'starting'}")
        run = found or RunDirectory.create(recipe.runs, recipe, f"{recipe.name}-{digest(recipe)}")
        with sole_writer(run):
            self._perform(planned, run)
        return run

    def _perform(self, planned: PlannedRun, run: RunDirectory) -> None:
        recipe = planned.recipe
        tags = {"comparison": self.home.path.name, "label": planned.label}
        tracker = Tracker.start(recipe.tracking, run, tags, parent=self.home)
        with tracker, followed(run, tracker):
            tracker.note(describe(run))
            data, held_out = self._data(run)
            tell_lineage(run, tracker)
            train(run, data, held_out)
            tracker.artifact(run.path / MODEL, MODEL)
            report(run, tracker, held_out, [own_variant(recipe, run.path / MODEL)], self.evaluators)

    def _data(self, run: RunDirectory) -> tuple[AnyPath, AnyPath]:
        """Curate once for all runs with the same data."""
        recipe = run.recipe()
        key = recipe.model_dump_json(include={"model", "data", "evaluation"})
        if key not in self._prepared:
            data, held_out = prepare_latents(recipe, run)
            assert held_out is not None, "evaluation is null: a comparison needs held-out clips"
            self._prepared[key] = data, held_out, run.data()
        data, held_out, lineage = self._prepared[key]
        run.store_data(lineage)
        return data, held_out


def _report(comparison: ComparisonRecipe, home: RunDirectory, tracker: Tracker) -> None:
    tuned = []
    for method, trials in tuning_plan(comparison).items():
        found = {rate: run for rate, trial in trials.items() if (run := _finished(trial))}
        if len(found) == len(trials):
            tuned.append(Tuned(method, found))
    runs: dict[str, list[RunDirectory]] = {}
    for planned in plan(comparison, _rates(tuned)):
        if run := _finished(planned):
            runs.setdefault(planned.label, []).append(run)
    write_report(comparison, home, runs, tuned, tracker)


def _finished(planned: PlannedRun) -> RunDirectory | None:
    run = find_run(planned.recipe)
    return run if run is not None and run.scores_path.exists() else None


def _rates(tuned: Iterable[Tuned]) -> dict[str, float]:
    return {found.method: found.best for found in tuned}


def _home(comparison: ComparisonRecipe) -> RunDirectory:
    """Open the folder of the comparison: a run of its base recipe that is never trained."""
    recipe = base_recipe(comparison)
    path = resolve_root(comparison.runs) / comparison.name
    home = RunDirectory(path)
    if not home.recipe_path.exists():
        home = RunDirectory.create(comparison.runs, recipe, comparison.name)
    home.store(recipe)
    text = yaml.safe_dump(comparison.model_dump(mode="json"), sort_keys=False)
    write_text(home.path / "comparison.yaml", text)
    return home
