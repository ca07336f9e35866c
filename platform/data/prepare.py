"""The data of a job: curated and encoded, or decoded for the training of a VAE.

Apart from the steps that follow, so that `jobs/curate.py` imports no more than it needs.
"""

from collections.abc import Mapping
from pathlib import Path

from magicdistill.data_pipeline.config import DataConfig
from magicdistill.data_pipeline.io.object_stores import is_remote
from magicdistill.data_pipeline.io.storage import AnyPath, place
from magicdistill.data_pipeline.latents.cache import LatentCache
from magicdistill.data_pipeline.pipeline import curate_together
from magicdistill.data_pipeline.rows import ClipRow
from magicdistill.data_pipeline.selection.curation_result import CurationResult, Selection
from magicdistill.models.locations import find_weights
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.data.batches import demand_glyphs, demand_image_tokens
from magicdistill.platform.runs import logs
from magicdistill.platform.runs.logs import ExplainedError
from magicdistill.platform.runs.run_directory import RunDirectory, resolve_root

MAX_LOST = 8
"""Most clips that are named, of those that were not kept."""
Prepared = tuple[AnyPath, AnyPath | None]
"""Location of the training data, and of the held-out latents if there are any."""


def prepare(recipe: Recipe, run: RunDirectory) -> Prepared:
    """Make the data that a recipe trains on and is evaluated with, except what exists already."""
    if recipe.method.data == "pixels":
        from magicdistill.platform.data.vae_windows import prepare_pixels

        return prepare_pixels(recipe, run, data_root(recipe, run.path.parent)), None
    return prepare_latents(recipe, run)


def data_root(recipe: Recipe, runs: Path) -> AnyPath:
    """Return the place of clips, ledger and latents, which all runs in the folder `runs` share.

    A relative one starts where `runs` does, see `resolve_root`.
    """
    root = recipe.data_root
    if root is None:
        return runs / "data"
    return place(root) if is_remote(root) else resolve_root(root)


def prepare_latents(recipe: Recipe, run: RunDirectory) -> Prepared:
    """Curate the training clips and the held-out ones; return their latent caches."""
    assert recipe.model.vae is not None, "model.vae: latents need a VAE"
    vae = find_weights(recipe.model.vae, "model.vae")
    configs = data_configs(recipe)
    logs.say(f"curating {' and '.join(configs)} clips")
    results = curate_together(list(configs.values()), vae, data_root(recipe, run.path.parent))
    found = dict(zip(configs, results, strict=True))
    for title, result in found.items():
        tell(title, result)
    demand_captions(recipe, found["training"])
    for field, config, title in (
        ("data", recipe.data, "training"),
        ("evaluation.data", recipe.evaluation and recipe.evaluation.data, "held-out"),
    ):
        if config is not None:
            cache = LatentCache(found[title].cache_path)
            demand_image_tokens(cache, config.prompts, field)
            if recipe.model.shapes.transformer.takes_glyphs:
                demand_glyphs(cache, config.prompts, field)
    _demand_the_same(run, found)
    run.store_data(lineage(found))
    held_out = found.get("held-out")
    return found["training"].cache_path, held_out and held_out.cache_path


def demand_captions(recipe: Recipe, selection: Selection) -> None:
    """Raise ExplainedError where guidance is to be distilled and no accepted clip has a caption."""
    if not recipe.method.distils_guidance:
        return
    for clips in selection.judged.tables("status = 'accepted'"):
        if any(clips["caption"].to_pylist()):
            return
    raise ExplainedError(
        f"data.sources: no accepted clip has a caption, and {recipe.method.name} distils guidance, "
        "which compares captions with the null prompt; add sources with captions"
    )


def data_configs(recipe: Recipe) -> dict[str, DataConfig]:
    """Return the data configurations that a recipe curates, by purpose."""
    configs = {"training": recipe.data}
    if recipe.evaluation is not None:
        configs["held-out"] = recipe.evaluation.data
    return configs


def _demand_the_same(run: RunDirectory, results: Mapping[str, CurationResult]) -> None:
    """Refuse to resume a run on other clips, because their order would change."""
    before = {title: facts["latents"] for title, facts in run.data().items()}
    now = {title: result.version for title, result in results.items()}
    if before not in ({}, now):
        raise ExplainedError(
            f"the clips changed since the run began: {before} became {now}. Restore them, or "
            f"delete {run.data_path} to go on with others"
        )


def lineage(results: Mapping[str, CurationResult]) -> dict[str, dict[str, str]]:
    """Return, by purpose, the versions of latents and policy and the mixture of clips."""
    return {
        title: {
            "latents": result.version,
            "policy": result.config.policy.version,
            "mixture": ", ".join(f"{name} {count}" for name, count in result.mixture.items()),
        }
        for title, result in results.items()
    }


def tell(title: str, selection: Selection) -> None:
    """Print how many clips were kept, and why the first of the others were not."""
    counts = "  ".join(f"{name} {count}" for name, count in selection.counts.items())
    logs.say(f"{title} clips: {counts}")
    if selection.config.other_buckets:
        shapes = "  ".join(f"{shape} {count}" for shape, count in selection.buckets.items())
        logs.say(f"  accepted by bucket: {shapes}")
    judged = selection.judged
    lost = (
        *judged.decisions("status = 'rejected'", MAX_LOST),
        *judged.decisions("status = 'failed'", MAX_LOST),
    )
    for decision in lost[:MAX_LOST]:
        logs.say(f"  {decision.status} {name_of(decision.clip)}: {', '.join(decision.reasons)}")
    num_lost = selection.counts["rejected"] + selection.counts["failed"]
    if num_lost > MAX_LOST:
        logs.say(f"  and {num_lost - MAX_LOST} more")


def name_of(clip: ClipRow) -> str:
    """Return a clip's film and what tells it from other clips of the film, its span or its entry in
    a manifest."""
    film = clip.video.source_id
    if clip.stop and clip.fps:
        return f"{film} from {clip.start / clip.fps:.2f} to {clip.stop / clip.fps:.2f} s"
    return f"{film} {clip.video.entry}".rstrip()
