"""What a recipe alone tells of its training: said before Ray starts, and by a dry run.

Each check yields sentences with the field, its value and the fix. None of them imports torch,
except for LoRA targets of one's own, which are looked for in the network.
"""

import os
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from magicdistill.models.locations import CONFIG, find_weights
from magicdistill.models.methods.registry import METHODS
from magicdistill.models.metrics.columns.registry import METRICS
from magicdistill.models.networks.autoencoder.registry import demand_vae
from magicdistill.models.networks.backbones.registry import demand_layout, demand_shapes
from magicdistill.models.networks.conditioning.encoder_folders import image_folders
from magicdistill.models.networks.config import demand_share
from magicdistill.models.paths import PathError
from magicdistill.platform.config.experts import FIELD as OTHER_EXPERT
from magicdistill.platform.config.experts import expert_problem
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.config.sections import OptimizerConfig, Thresholds
from magicdistill.platform.config.validation import RecipeError
from magicdistill.platform.planning.flops import sample_of


def demand_trainable(recipe: Recipe) -> None:
    """Raise RecipeError with everything for which a training of the recipe would fail or be void.

    Whether its weights exist is asked by `demand_weights`.
    """
    found = [
        *_batch(recipe),
        *_shapes(recipe),
        *_optimizers(recipe),
        *_method(recipe),
        *_evaluation(recipe),
        *_cluster(recipe),
    ]
    if found:
        raise RecipeError("\n".join(found))


def demand_weights(recipe: Recipe) -> None:
    """Raise RecipeError with all weights of the recipe that are missing or of another kind."""
    if found := [problem for _, problem in weight_problems(recipe)]:
        raise RecipeError("\n".join(found))


def demand_fitting_weights(recipe: Recipe, *, trained: bool = True) -> None:
    """Raise RecipeError with the weights that are there and are of another kind than the preset.

    It is asked wherever a recipe is read, also where weights may be missing: a plan for other
    shapes than those of the teacher would be wrong. `trained` says whether they are to be trained.
    """
    if found := [problem for _, problem in unfit_weights(recipe, trained=trained)]:
        raise RecipeError("\n".join(found))


def micro_batch(recipe: Recipe) -> int:
    """Return the samples of one backward on one sequence group.

    Raises RecipeError where the workers, the batch, the heads or the tokens do not divide.
    """
    cluster, schedule = recipe.cluster, recipe.schedule
    shapes = recipe.model.shapes
    try:
        shapes.transformer.demand_split(cluster.sequence_parallel)
        for bucket in recipe.data.buckets:
            tokens = sample_of(bucket, shapes).video_tokens
            demand_share(f"video tokens of {bucket}", tokens, cluster.sequence_parallel)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    groups, rest = divmod(cluster.num_workers, cluster.sequence_parallel)
    if rest:
        raise RecipeError(
            f"cluster.num_workers {cluster.num_workers} does not divide into groups of "
            f"cluster.sequence_parallel {cluster.sequence_parallel}: choose a multiple of that"
        )
    parts = groups * schedule.num_micro_batches
    count, rest = divmod(schedule.batch_size, parts)
    if rest or not count:
        raise RecipeError(
            f"schedule.batch_size {schedule.batch_size} does not divide over {groups} groups x "
            f"{schedule.num_micro_batches} micro-batches: choose a multiple of {parts}, or another "
            "cluster.num_workers, cluster.sequence_parallel or schedule.num_micro_batches"
        )
    return count


def _batch(recipe: Recipe) -> Iterator[str]:
    try:
        micro_batch(recipe)
    except RecipeError as error:
        yield str(error)


def _shapes(recipe: Recipe) -> Iterator[str]:
    """Check that windows are whole patches, and prompts as wide as the network takes them."""
    vae = recipe.model.shapes.vae
    if recipe.method.data != "latents":
        return
    if recipe.model.vae is None:
        yield f"model.vae: null: {recipe.method.name} trains on latents; give the folder of a VAE"
    shapes = recipe.model.shapes.transformer
    wanted = {"token_dim": shapes.text_embed_dim, "pooled_dim": shapes.pooled_projection_dim}
    configs = {"data": recipe.data}
    if recipe.evaluation is not None:
        configs["evaluation.data"] = recipe.evaluation.data
    for name, data in configs.items():
        for bucket in data.buckets:
            if bucket.num_frames % (frames := vae.time_compression) != 1:
                yield f"{name}.bucket {bucket}: give {frames}k+1 frames, as the VAE encodes them"
            for side, latents in zip((bucket.height, bucket.width), shapes.patch[1:], strict=True):
                if side % (pixels := vae.space_compression * latents):
                    yield (
                        f"{name}.bucket {bucket}: {side} pixels are no whole patches; choose a "
                        f"multiple of {pixels}"
                    )
        for field, width in wanted.items():
            if (given := getattr(data.null_text, field)) != width:
                yield (
                    f"{name}.null_text.{field} {given}: model.preset {recipe.model.preset} takes "
                    f"{width}; give that"
                )


def _optimizers(recipe: Recipe) -> Iterator[str]:
    """Check that each role has an optimiser, whose rate does not end before the run."""
    optimizers, roles = recipe.schedule.optimizers, recipe.method.roles
    known = sorted({*roles, *(role for method in METHODS for role in method.roles)})
    for role in optimizers.keys() - known:
        near = get_close_matches(role, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        yield f"schedule.optimizers.{role}: no method trains such a role; {hint}"
    for role in roles:
        if role not in optimizers:
            yield f"schedule.optimizers.{role} is missing: {recipe.method.name} trains it; give lr"
        else:
            yield from _rate(recipe, role, optimizers[role])


def _rate(recipe: Recipe, role: str, optimizer: OptimizerConfig) -> Iterator[str]:
    name = f"schedule.optimizers.{role}"
    num_updates = recipe.schedule.num_cycles * recipe.method.updates_per_cycle(role)
    steps = optimizer.over(num_updates).decay_steps
    if steps is None and optimizer.final_lr:
        yield f"{name}.final_lr {optimizer.final_lr:g}: the rate does not fall; give decay 1 too"
    if steps is not None and steps < num_updates and optimizer.final_lr == 0:
        given = "decay" if optimizer.decay_steps is None else "decay_steps"
        yield (
            f"{name}.{given} {getattr(optimizer, given):g}: the rate is 0 after {steps} of "
            f"{num_updates} updates; give --{name}.decay 1 --{name}.decay_steps null, or a final_lr"
        )


def _method(recipe: Recipe) -> Iterator[str]:
    prompts = recipe.data.prompts
    if recipe.method.distils_guidance and (prompts is None or prompts.drop == 1):
        given = "data.prompts: null" if prompts is None else "data.prompts.drop: 1"
        yield (
            f"{given}: {recipe.method.name} distils guidance, which compares captions with the "
            "null prompt, and every clip would have the null prompt; give data.prompts with text "
            "encoders, and a drop below 1"
        )
    stride = prompts and prompts.image_token_stride
    if prompts is not None and recipe.model.shapes.transformer.demands_image_tokens and stride != 1:
        yield (
            f"data.prompts.image_token_stride {stride or 'null'}: networks of the preset "
            f"{recipe.model.preset} take all image tokens of the first frame beside a prompt; "
            "give 1 and curate with this recipe"
        )
    for problem in recipe.method.problems(recipe.model, recipe.schedule.num_cycles):
        yield f"method.{problem}"


def _evaluation(recipe: Recipe) -> Iterator[str]:
    """Check what chooses the best checkpoint, and that held-out clips are like those trained on."""
    health, evaluation = recipe.health, recipe.evaluation
    limits = [name for name, value in health if isinstance(value, Thresholds)]
    if health.best_by not in (known := (*limits, *METRICS.names())):
        yield f"health.best_by {health.best_by}: no such metric; choose one of {', '.join(known)}"
    if evaluation is None:
        return
    held_out, trained = (
        data.prompts and data.prompts.image_token_stride for data in (evaluation.data, recipe.data)
    )
    if held_out != trained:
        yield (
            f"evaluation.data.prompts.image_token_stride {held_out or 'null'}: the training has "
            f"{trained or 'null'}; give the same"
        )
    if not evaluation.has_clips:
        yield (
            "evaluation: a training is judged beside held-out clips, and these are pictures; give "
            "clips or null here, and the pictures to jobs/evaluate.py --protocol"
        )
    elif evaluation.data.bucket not in recipe.data.buckets and recipe.method.data == "latents":
        yield (
            f"evaluation.data.bucket {evaluation.data.bucket}: the training has "
            f"{' and '.join(map(str, recipe.data.buckets))}; give the same"
        )


def _cluster(recipe: Recipe) -> Iterator[str]:
    """Check what runs on this machine's processors: it has kernels, and places for all."""
    cluster, kernels, engine = recipe.cluster, recipe.kernels, recipe.engine
    anywhere = kernels.attention in ("auto", "sdpa")
    if not anywhere and not (cluster.uses_gpus and engine.precision == "bf16"):
        where = "GPUs" if cluster.uses_gpus else "CPUs"
        yield (
            f"kernels.attention {kernels.attention}: it computes bf16 on GPUs, and this is "
            f"{engine.precision} on {where}; give auto or sdpa"
        )
    pairs = recipe.pairs
    makers = pairs.num_actors if pairs and pairs.stored is None else 0
    wanted = cluster.num_workers + makers + recipe.data.num_readers
    is_local = cluster.address is None and "RAY_ADDRESS" not in os.environ
    if is_local and not cluster.gpus_per_worker and wanted > cluster.logical_cpus:
        yield (
            f"cluster.logical_cpus {cluster.logical_cpus}: workers, readers and makers of pairs "
            f"are {wanted} processes; give at least {wanted}, or fewer of them"
        )


def weight_locations(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield the fields that name weights to begin with, and where those are."""
    model, pairs = recipe.model, recipe.pairs
    for field, location in (
        ("model.vae", model.vae),
        ("model.teacher", model.teacher),
        ("model.generator", model.generator),
        ("model.other_expert", model.other_expert),
        ("pairs.generator", pairs and pairs.generator),
    ):
        if location is not None:
            yield field, location


def weight_problems(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield the fields whose weights are missing or of another kind, and why."""
    prompts, evaluation = recipe.data.prompts, recipe.evaluation
    for field, location in weight_locations(recipe):
        try:
            find_weights(location, field)
        except FileNotFoundError as error:
            yield field, f"{error}; give one that has them"
        except PathError:
            pass  # of another kind
    yield from unfit_weights(recipe)
    if problem := expert_problem(recipe):
        yield OTHER_EXPERT, problem
    for field, location in (
        ("data.prompts.encoder", prompts and prompts.encoder),
        ("evaluation.networks", evaluation and evaluation.networks),
    ):
        if location is not None and not Path(location).is_dir():
            yield field, f"{field}: there is no folder {location}; give one that exists"
    if prompts is not None and prompts.image_token_stride is not None:
        yield from _blindness(prompts.encoder, prompts.image_token_stride)


def unfit_weights(recipe: Recipe, *, trained: bool = True) -> Iterator[tuple[str, str]]:
    """Yield the fields whose weights are there and of another kind than the preset, and why."""
    for field, location in weight_locations(recipe):
        try:
            path = find_weights(location, field)
            if field == "model.vae" and path.is_dir():
                demand_vae(path / CONFIG, recipe.model.shapes.vae)
            elif field != "model.vae":
                config = _demand_preset(recipe, field, path)
                if field == "model.teacher" and trained:
                    _demand_sight(recipe, path, config)
        except FileNotFoundError:
            continue
        except PathError as error:
            yield field, str(error)
        except ValueError as error:
            yield field, f"{field}: {error}"


def _demand_preset(recipe: Recipe, field: str, path: Path) -> dict[str, Any]:
    """Return the configuration of a transformer; raise ValueError where it is another than said."""
    model = recipe.model
    shapes = model.shapes.transformer
    layout = model.teacher_layout if field == "model.teacher" else None
    if not path.is_dir():
        from magicdistill.models.networks.state_dicts import demand_file  # imports torch

        return demand_file(path, shapes, model.preset, layout)
    config = demand_shapes(path, shapes, model.preset)
    demand_layout(path, layout)
    return config


def _demand_sight(recipe: Recipe, path: Path, config: Mapping[str, Any]) -> None:
    """Raise ValueError where a student would be distilled from a teacher that sees no picture."""
    shapes = type(recipe.model.shapes.transformer)
    if recipe.method.makes == "student" and not shapes.sees_image(config):
        raise ValueError(
            f"{path} is text-to-video and takes no first frame, so its student would ignore the "
            "picture; train it with jobs/finetune.py first, or give image-to-video weights"
        )


def _blindness(encoder: str, stride: int) -> Iterator[tuple[str, str]]:
    """Yield why an encoder cannot see first frames."""
    root = Path(encoder)
    missing = [name for name in image_folders(root) if not (root / name).is_dir()]
    if root.is_dir() and missing:
        yield (
            "data.prompts.encoder",
            f"data.prompts.encoder {encoder}: it has no {' and no '.join(missing)}, and "
            f"image_token_stride {stride} gives it first frames; name a folder of an "
            "image-to-video pipeline, or leave the stride out",
        )
