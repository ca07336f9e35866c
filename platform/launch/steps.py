"""The steps of a job: data, training, evaluation.

Networks are for the workers, where they can be: their packages take seconds to import.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from safetensors import safe_open

from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.pipeline import curate_together
from magicdistill.models.locations import CONFIG, find_weights
from magicdistill.models.networks.backbones.registry import family_in
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.data.prepare import data_root, prepare, tell
from magicdistill.platform.evaluation.evaluate_run import (
    MEASURES,
    Evaluators,
    evaluate,
    format_table,
)
from magicdistill.platform.export.model_card import model_card
from magicdistill.platform.inference.variants import Variant, variants
from magicdistill.platform.runs import logs
from magicdistill.platform.runs.cycle_bar import cycle_bar
from magicdistill.platform.runs.run_directory import RunDirectory, resolve_root
from magicdistill.platform.tracking.run_description import describe
from magicdistill.platform.tracking.tracker import Tracker
from magicdistill.platform.training.ray_trainer import fit

MODEL = "model"
"""The folder of a run with its finished network."""


def perform(recipe: Recipe, run: RunDirectory, tracker: Tracker) -> None:
    """Prepare the data, train and evaluate; every step that is already done is skipped."""
    data, held_out = prepare(recipe, run)
    tell_lineage(run, tracker)
    evaluators = Evaluators(recipe)
    if recipe.evaluation is not None:
        evaluators.warm_up(recipe.evaluation.num_clips)
    train(run, data, held_out)
    if held_out is not None:
        report(run, tracker, held_out, variants(recipe, run.path / MODEL), evaluators)
    publish(run, tracker)
    if recipe.evaluation is None and recipe.method.makes != "vae":
        logs.say(
            "no table, as the recipe has no evaluation: python jobs/evaluate.py --recipe "
            f"{run.recipe_path} --model {run.path} --protocol NAME"
        )


def tell_lineage(run: RunDirectory, tracker: Tracker) -> None:
    """Track which latents and weights a run reads."""
    tracker.data(run.data())
    for field, location in initial_weights(run.recipe()).items():
        tracker.weights(field, location, find_weights(location, field))


def initial_weights(recipe: Recipe) -> dict[str, str]:
    """Return the places of all weights that a recipe starts from, by its fields."""
    model, pairs = recipe.model, recipe.pairs
    fields = {
        "model.teacher": model.teacher,
        "model.vae": model.vae,
        "model.generator": model.generator,
        "model.other_expert": model.other_expert,
        "pairs.generator": pairs and pairs.generator,
    }
    return {field: location for field, location in fields.items() if location}


def publish(run: RunDirectory, tracker: Tracker) -> None:
    """Track the finished model: a generator as a version of a registered one."""
    recipe, folder = run.recipe(), run.path / MODEL
    if recipe.method.makes == "vae":
        tracker.artifact(folder, MODEL)
        return
    assert recipe.model.vae is not None
    family = family_in(folder)
    card = model_card(
        run,
        recipe.schedule.num_cycles,
        count_stored(folder),
        "fp16",
        family=family,
        config=json.loads((folder / CONFIG).read_text()),
        averaged=recipe.schedule.ema_decay is not None,
    )
    tracker.model(recipe.name, folder, find_weights(recipe.model.vae, "model.vae"), card)


def count_stored(folder: Path) -> int:
    """Return the numbers in a network's files, from their headers alone."""
    shapes: list[Sequence[int]] = []
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "numpy") as file:
            shapes += [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    return sum(map(math.prod, shapes))


def train(run: RunDirectory, data: AnyPath, held_out: AnyPath | None) -> None:
    """Train the model; the teacher as it is where the method trains nothing."""
    recipe = run.recipe()
    if not recipe.method.roles:
        from magicdistill.models.methods.build import teacher
        from magicdistill.models.networks.weights import save_transformer

        save_transformer(teacher(recipe.model), run.path / MODEL)
        run.become_latest()
    else:
        logs.say("starting the training workers")
        with cycle_bar(run, recipe.schedule.num_cycles):
            fit(run, data, held_out)
    logs.say(f"model  {run.path / 'model'}")


def store_pairs(recipe: Recipe, root: AnyPath) -> AnyPath:
    """Make and store the pairs of a recipe's training; return the version to read them from."""
    from magicdistill.platform.data import stream_source

    assert recipe.model.vae is not None, "model.vae: latents need a VAE"
    vae = find_weights(recipe.model.vae, "model.vae")
    place_of_data = data_root(recipe, resolve_root(recipe.runs))
    (result,) = curate_together([recipe.data], vae, place_of_data)
    tell("training", result)
    logs.say("making pairs")
    return stream_source.store_pairs(recipe, result.cache_path, root)


def report(
    run: RunDirectory,
    tracker: Tracker,
    held_out: AnyPath,
    ways: Sequence[Variant],
    evaluators: Evaluators,
) -> None:
    """Evaluate, print the table and where the pictures are, and track them."""
    with logs.working("evaluating on held-out clips"):
        table = evaluate(run, held_out, ways, evaluators)
    print(format_table(table), flush=True)
    tracker.table([asdict(row) for row in table], "scores")
    step = run.recipe().schedule.num_cycles
    for row in table:
        measures = asdict(row)
        scores = {f"evaluation/{row.variant}/{name}": measures[name] for name in MEASURES}
        tracker.metrics(scores, step)
    tracker.note(describe(run))
    logs.say(f"video  {run.samples / 'comparison.mp4'}")
    logs.say(f"sheet  {run.samples / 'comparison.png'}")
