"""The steps of a job: data, training, evaluation."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from diffusers import HunyuanVideoTransformer3DModel

from magicdistill.data_pipeline.config import DataConfig
from magicdistill.data_pipeline.curation import CurationResult, Selection
from magicdistill.data_pipeline.pipeline import curate_together, select_clips
from magicdistill.data_pipeline.sources.stores import is_remote
from magicdistill.data_pipeline.storage import AnyPath, place
from magicdistill.data_pipeline.windows import read_windows
from magicdistill.models.networks.config import ModelConfig
from magicdistill.models.networks.patch_code import set_patch_code
from magicdistill.models.networks.patch_decoder import PatchDecoder
from magicdistill.models.networks.state_dicts import CONFIG, public
from magicdistill.models.networks.vae import VideoVae, build_autoencoder
from magicdistill.models.networks.weights import find_weights, save_transformer
from magicdistill.models.objectives.build import teacher
from magicdistill.models.objectives.config import EulerMethod, VaeMethod
from magicdistill.platform import logs, pairs
from magicdistill.platform.evaluation import (
    MEASURES,
    Judges,
    Variant,
    evaluate,
    format_table,
    variants,
)
from magicdistill.platform.logs import ExplainedError
from magicdistill.platform.model_card import model_card
from magicdistill.platform.recipe import Recipe
from magicdistill.platform.run_directory import RunDirectory, resolve_root
from magicdistill.platform.run_note import describe
from magicdistill.platform.tracking import Tracker
from magicdistill.platform.trainer import fit

CODE_CLIPS = 400
MODEL = "model"
"""The folder of a run with its finished network."""


def perform(recipe: Recipe, run: RunDirectory, tracker: Tracker) -> None:
    """Prepare the data, train and evaluate; every step that is already done is skipped."""
    judges = Judges(recipe)
    if recipe.evaluation is not None:
        judges.warm_up(recipe.evaluation.num_clips)
    prepare = prepare_pixels if isinstance(recipe.method, VaeMethod) else prepare_latents
    data, held_out = prepare(recipe, run)
    tell_lineage(run, tracker)
    train(run, data, held_out)
    if held_out is not None:
        report(run, tracker, held_out, variants(recipe, run.path / MODEL), judges)
    publish(run, tracker)


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
        "pairs.generator": pairs and pairs.generator,
    }
    return {field: location for field, location in fields.items() if location}


def publish(run: RunDirectory, tracker: Tracker) -> None:
    """Track the finished model: a generator as a version of a registered one."""
    recipe, folder = run.recipe(), run.path / MODEL
    if isinstance(recipe.method, VaeMethod):
        tracker.artifact(folder, MODEL)
        return
    assert recipe.model.vae is not None
    config = json.loads((folder / CONFIG).read_text())
    with torch.device("meta"):
        transformer = HunyuanVideoTransformer3DModel(**public(config))
    averaged = recipe.schedule.ema_decay is not None
    card = model_card(run, recipe.schedule.num_cycles, transformer, "fp16", averaged=averaged)
    tracker.model(recipe.name, folder, find_weights(recipe.model.vae, "model.vae"), card)


def train(run: RunDirectory, data: AnyPath, held_out: AnyPath | None) -> None:
    """Train the model; that of `euler` is the teacher as it is."""
    recipe = run.recipe()
    if isinstance(recipe.method, EulerMethod):
        save_transformer(teacher(recipe.model), run.path / MODEL)
    else:
        logs.say("starting the training workers; DeepSpeed's first use compiles for about 20 s")
        fit(run, data, held_out)
    logs.say(f"model  {run.path / 'model'}")


def data_root(recipe: Recipe, runs: Path) -> AnyPath:
    """Return the place of clips, ledger and latents, which all runs in the folder `runs` share.

    A relative one starts where `runs` does, see `resolve_root`.
    """
    root = recipe.data_root
    if root is None:
        return runs / "data"
    return place(root) if is_remote(root) else resolve_root(root)


def prepare_latents(recipe: Recipe, run: RunDirectory) -> tuple[AnyPath, AnyPath | None]:
    """Curate the training clips and the held-out ones; return their latent caches."""
    assert recipe.model.vae is not None, "model.vae: latents need a VAE"
    vae = find_weights(recipe.model.vae, "model.vae")
    configs = data_configs(recipe)
    logs.say(f"curating {' and '.join(configs)} clips")
    results = curate_together(list(configs.values()), vae, data_root(recipe, run.path.parent))
    found = dict(zip(configs, results, strict=True))
    for title, result in found.items():
        tell(title, result)
    _demand_the_same(run, found)
    run.store_data(lineage(found))
    held_out = found.get("held-out")
    return found["training"].cache_path, held_out and held_out.cache_path


def store_pairs(recipe: Recipe, root: AnyPath) -> AnyPath:
    """Make and store the pairs of a recipe's training; return the version to read them from."""
    assert recipe.model.vae is not None, "model.vae: latents need a VAE"
    vae = find_weights(recipe.model.vae, "model.vae")
    place_of_data = data_root(recipe, resolve_root(recipe.runs))
    (result,) = curate_together([recipe.data], vae, place_of_data)
    tell("training", result)
    logs.say("making pairs")
    return pairs.store_pairs(recipe, result.cache_path, root)


def data_configs(recipe: Recipe) -> dict[str, DataConfig]:
    """Return what a recipe curates, by purpose."""
    configs = {"training": recipe.data}
    if recipe.evaluation is not None:
        configs["held-out"] = recipe.evaluation.data
    return configs


def _demand_the_same(run: RunDirectory, results: Mapping[str, CurationResult]) -> None:
    """Refuse to resume on other clips: the order in which they are drawn would change."""
    before = {title: facts["latents"] for title, facts in run.data().items()}
    now = {title: result.version for title, result in results.items()}
    if before not in ({}, now):
        raise ExplainedError(
            f"the clips changed since the run began: {before} became {now}. Restore them, or "
            f"delete {run.data_path} to go on with others"
        )


def lineage(results: Mapping[str, CurationResult]) -> dict[str, dict[str, str]]:
    """Return what names the data of a run by purpose: latents, policy and mixture of clips."""
    return {
        title: {
            "latents": result.version,
            "policy": result.config.policy.version,
            "mixture": ", ".join(f"{name} {count}" for name, count in result.mixture.items()),
        }
        for title, result in results.items()
    }


def tell(title: str, selection: Selection) -> None:
    """Say what became of the clips, and why the first of those left out are."""
    counts = "  ".join(f"{name} {count}" for name, count in selection.counts.items())
    logs.say(f"{title} clips: {counts}")
    if selection.config.other_buckets:
        shapes = "  ".join(f"{shape} {count}" for shape, count in selection.buckets.items())
        logs.say(f"  accepted by bucket: {shapes}")
    for decision in [*selection.rejected, *selection.failed][:8]:
        logs.say(f"  {decision.status} {decision.clip.source_id}: {', '.join(decision.reasons)}")


def prepare_pixels(recipe: Recipe, run: RunDirectory) -> tuple[Path, None]:
    """Decode the accepted clips' windows into one file and set the VAE's closed-form half."""
    path = run.path / "windows.npy"
    if not path.exists():
        clips = select_clips(recipe.data, data_root(recipe, run.path.parent))
        logs.say(f"decoding {len(clips)} clips")
        windows = read_windows(clips, recipe.data.bucket, recipe.data.windows_per_clip)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, np.concatenate(list(windows)))
        partial.replace(path)
    if recipe.model.vae is None:
        folder = run.path / "initial"
        torch.manual_seed(recipe.seed)
        initial_vae(recipe.model, np.load(path, mmap_mode="r")).save(folder)
        model = recipe.model.model_copy(update={"vae": str(folder)})
        run.store(recipe.model_copy(update={"model": model}))
    return path, None


def initial_vae(model: ModelConfig, windows: np.ndarray) -> VideoVae:
    """Build a VAE with the patch code of `windows`, uint8 (n t y x 3), and its linear inverse."""
    chosen = windows[:: max(1, len(windows) // CODE_CLIPS)][:CODE_CLIPS]
    pixels = torch.from_numpy(chosen).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    autoencoder = build_autoencoder(model.shapes.vae)
    set_patch_code(autoencoder, pixels)
    decoder = None
    if model.shapes.patch_decoder is not None:
        decoder = PatchDecoder(model.shapes.patch_decoder)
        with torch.no_grad():
            latents = torch.cat([VideoVae(autoencoder).encode(part) for part in pixels.split(8)])
        decoder.set_linear_inverse(latents, pixels)
    return VideoVae(autoencoder, patch_decoder=decoder)


def report(
    run: RunDirectory,
    tracker: Tracker,
    held_out: AnyPath,
    ways: Sequence[Variant],
    judges: Judges,
) -> None:
    """Evaluate, print the table and where the pictures are, and track them."""
    logs.say("evaluating on held-out clips")
    table = evaluate(run, held_out, ways, judges)
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
