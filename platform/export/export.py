"""Export a generator from a checkpoint of a run: a diffusers pipeline with a model card."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magicdistill.data_pipeline.io.user_files import demand_output_folder
from magicdistill.models.locations import find_weights
from magicdistill.models.networks.autoencoder.vae import VideoVae
from magicdistill.models.networks.backbones.registry import family_of
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.conditioning.prompt_encoder import PromptEncoder
from magicdistill.models.networks.int8 import write_int8
from magicdistill.models.networks.lora import write_lora
from magicdistill.models.networks.placement import WHOLE
from magicdistill.models.networks.state_dicts import WRAPPER
from magicdistill.models.networks.transformer import VelocityModel
from magicdistill.models.networks.weights import MAX_FILE_BYTES, write_transformer
from magicdistill.models.objectives.types import Method
from magicdistill.models.paths import local_path
from magicdistill.models.tensor_files import follow_umask
from magicdistill.platform.checkpoints.checkpoint_folder import (
    COMMITTED,
    cycle_of,
    find_damage,
    is_checkpoint,
)
from magicdistill.platform.checkpoints.checkpoints import EMA, Checkpoints
from magicdistill.platform.checkpoints.role_weights import Weights, role_weights
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.config.validation import RecipeError
from magicdistill.platform.export.diffusers_pipeline import (
    TRANSFORMER,
    write_pipeline_lora,
    write_stock_parts,
)
from magicdistill.platform.export.dtypes import DTYPES, DtypeName
from magicdistill.platform.export.model_card import lora_card, model_card
from magicdistill.platform.export.pretrained_model import LOW_NOISE, sampler_of
from magicdistill.platform.planning.preflight import demand_fitting_weights
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.runs.run_lock import RunInUseError, locked


class ExportError(Exception):
    """Nothing was exported; the message says why and what to do."""


def export(
    source: str,
    directory: Path,
    *,
    runs: str = "runs",
    role: str = "generator",
    ema: bool = True,
    dtype: DtypeName = "fp16",
    encoders: Path | None = None,
    low_noise: str | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
    say: Callable[[str], None] = print,
) -> None:
    """Write a role's network from a run's newest intact checkpoint, or from a given one.

    `source` is a run (path, name in `runs`, or `latest`) or the folder of a checkpoint. If the
    checkpoint has no averaged weights (`schedule.ema_decay`), the last weights are written. Only
    one file of the output is in memory at a time, and the folder appears when it is complete.
    `low_noise` is the run, or the checkpoint, of the expert for low noise levels, which is written
    beside the other. `encoders` is a diffusers folder whose text encoders are also written, in the
    same dtype; they are in memory whole.

    Raises ExportError if the folder is not empty, the checkpoint is damaged, or the role has no
    network of its own; FileNotFoundError if there is no such run.
    """
    demand_new(directory)
    run, checkpoint = find_checkpoint(source, runs, say)
    recipe = run.recipe()
    module = _network(recipe, role)
    averaged = ema and (checkpoint / EMA).is_dir()
    read = _reader(role_weights(checkpoint / (EMA if averaged else role)), module, DTYPES[dtype])
    cycle = cycle_of(checkpoint)
    with appearing(directory) as partial:
        folder = partial / TRANSFORMER
        write_transformer(
            module.transformer, folder, read, DTYPES[dtype], max_file_bytes=max_file_bytes
        )
        if dtype == "int8":
            _quantise(folder)
        vae = _load_vae(recipe, say)
        null = _null_prompt(recipe)
        experts: dict[str, Any] = {}
        if low_noise is not None:
            low, at = find_checkpoint(low_noise, runs, say)
            experts = _write_low_noise(low, at, recipe, partial, dtype, role, ema=ema)
        write_stock_parts(partial, module.transformer, sampler_of(recipe), vae, null, experts)
        if encoders is not None:
            PromptEncoder.load(encoders, DTYPES[dtype], int8=dtype == "int8").save(partial)
        family = family_of(module.transformer)
        card = model_card(
            run,
            cycle,
            sum(parameter.numel() for parameter in module.transformer.parameters()),
            dtype,
            family=family,
            config=module.transformer.config,
            averaged=averaged,
            patch_decoder=vae is not None and vae.patch_decoder is not None,
        )
        (partial / "README.md").write_text(card)
        shutil.copy(run.recipe_path, partial)
    kind = "averaged" if averaged else "last"
    say(f"{run.path.name}, cycle {cycle}: the {kind} weights of the {role} are in {directory}")


def _write_low_noise(
    run: RunDirectory,
    checkpoint: Path,
    high: Recipe,
    folder: Path,
    dtype: DtypeName,
    role: str,
    *,
    ema: bool,
) -> dict[str, Any]:
    """Write the expert for low noise levels; return the arguments of a pipeline of both.

    Raises ExportError where the runs are not of two experts that take turns at one noise level.
    """
    recipe = run.recipe()
    (start, end), (low_start, low_end) = high.method.noise_levels, recipe.method.noise_levels
    if not (low_start == 0 < low_end == start < end == 1):
        raise ExportError(
            f"--low_noise {run.path.name}: its noise levels are {low_start:g} to {low_end:g} and "
            f"those of the exported run {start:g} to {end:g}; give two runs whose method.interval "
            "meet"
        )
    module = _network(recipe, role)
    averaged = ema and (checkpoint / EMA).is_dir()
    read = _reader(role_weights(checkpoint / (EMA if averaged else role)), module, DTYPES[dtype])
    write_transformer(module.transformer, folder / LOW_NOISE, read, DTYPES[dtype])
    if dtype == "int8":
        _quantise(folder / LOW_NOISE)
    return {LOW_NOISE: module.transformer, "boundary_ratio": start}


def export_lora(
    source: str, directory: Path, *, runs: str = "runs", say: Callable[[str], None] = print
) -> None:
    """Write only the weak-to-strong LoRA of a checkpoint, in float32 and in the format of peft.

    `PeftModel.from_pretrained` and diffusers' `load_lora_weights` and `load_lora_adapter` put it on
    the teacher. Raises as
    `export` does, and ExportError where the method trains none.
    """
    demand_new(directory)
    run, checkpoint = find_checkpoint(source, runs, say)
    recipe = run.recipe()
    lora = _weightless(recipe).lora()
    if lora is None:
        raise ExportError(f"--lora_only: the method {recipe.method.name} trains no LoRA")
    weights = role_weights(checkpoint / lora.role)
    state = {
        name: _finite(name, weights[f"{lora.prefix}{name}"](), torch.float32)
        for name, _ in lora.transformer.named_parameters()
        if "lora_" in name
    }
    with appearing(directory) as partial:
        write_lora(lora.transformer, state, partial, base=recipe.model.teacher)
        write_pipeline_lora(partial)
        num_parameters = sum(p.numel() for p in state.values())
        card = lora_card(run, cycle_of(checkpoint), num_parameters, lora)
        (partial / "README.md").write_text(card)
        shutil.copy(run.recipe_path, partial)
    say(f"{run.path.name}, cycle {cycle_of(checkpoint)}: the LoRA is in {directory}")


def demand_new(directory: Path) -> None:
    """Raise ExportError if a folder exists and is not empty."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ExportError(f"--to {directory}: it is not empty; give a folder that is new")
    demand_output_folder(directory.absolute().parent, "--to")


@contextmanager
def appearing(directory: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `directory` when the body is done.

    Where the body fails or is stopped, the temporary folder goes.
    """
    partial = directory.absolute().with_name(f".{directory.name}.{os.getpid()}.tmp")
    partial.mkdir(parents=True)
    try:
        yield partial
        follow_umask(partial)
        partial.replace(directory)
    except BaseException:
        shutil.rmtree(partial)
        raise


def _load_vae(recipe: Recipe, say: Callable[[str], None]) -> VideoVae | None:
    try:
        return VideoVae.load(find_weights(recipe.model.vae or "(null)", "model.vae"))
    except FileNotFoundError as error:
        say(f"the pipeline is without a VAE: {error}")
        return None


def _null_prompt(recipe: Recipe) -> Conditions | None:
    """Return the zero embedding of the null prompt; None if an encoder computes it."""
    if recipe.data.prompts:
        return None
    shapes, text = recipe.model.shapes.transformer, recipe.data.null_text
    return Conditions.null(
        torch.zeros(1, shapes.latent_channels, 1, 1, 1),
        num_tokens=text.num_tokens,
        text_dim=text.token_dim,
        pooled_dim=text.pooled_dim,
    )


def _quantise(folder: Path) -> None:
    """Replace the weights in a folder by int8 weights."""
    whole = folder.with_name(f"{folder.name}.bf16")
    shutil.rmtree(whole, ignore_errors=True)
    folder.replace(whole)
    try:
        write_int8(whole, folder)
    except ModuleNotFoundError as error:
        raise ExportError(str(error)) from None
    finally:
        shutil.rmtree(whole)


def find_checkpoint(
    source: str, runs: str, say: Callable[[str], None]
) -> tuple[RunDirectory, Path]:
    """Return an intact checkpoint, from the mirror of the run if need be, and the run."""
    path = Path(local_path(source)).resolve()
    if path.parent.name == "checkpoints" and (path.parents[1] / "recipe.yaml").is_file():
        if not is_checkpoint(path.name) or not (path / COMMITTED).is_file():
            raise ExportError(
                f"{path} is no complete checkpoint: give a folder named cycle- and seven digits "
                f"that has a file {COMMITTED}"
            )
        if damaged := find_damage(path):
            raise ExportError(
                f"checkpoint {path.name} is damaged ({', '.join(damaged)}): give the run instead, "
                "whose newest intact checkpoint is taken"
            )
        return RunDirectory(path.parents[1]), path
    run = RunDirectory.open(source, root=runs)
    checkpoints = Checkpoints.of(run, warn=say)
    names = checkpoints.names()
    for name in reversed(names):
        path = run.checkpoints / name
        if not (damaged := _bring(run, checkpoints, path)):
            return run, path
        say(f"checkpoint {name} is damaged ({', '.join(damaged)}): passed over")
    raise ExportError(f"run {run.path.name} has no {'intact' if names else 'complete'} checkpoint")


def _bring(run: RunDirectory, checkpoints: Checkpoints, path: Path) -> list[str]:
    """Return the damage of a checkpoint after it was fetched from the mirror, if need be."""
    damaged = find_damage(path)
    if damaged and checkpoints.mirror is not None:
        # A training would remove what is half fetched: while one is in the run, nothing is.
        with suppress(RunInUseError), locked(run):
            damaged = checkpoints.bring(path)
    return damaged


def _network(recipe: Recipe, role: str) -> VelocityModel:
    """Build the role's network without storage."""
    modules = _weightless(recipe).modules
    module = modules.get(role)
    if not isinstance(module, VelocityModel):
        whole = [name for name, other in modules.items() if isinstance(other, VelocityModel)]
        raise ExportError(
            f"--role {role}: the run trains {', '.join(modules)}, and of these "
            f"{', '.join(whole) or 'none'} is a whole transformer"
        )
    return module


def _weightless(recipe: Recipe) -> Method:
    """Build the recipe's method with networks that have no storage."""
    try:
        demand_fitting_weights(recipe, trained=False)
    except RecipeError as error:
        raise ExportError(str(error)) from None
    with torch.device("meta"):
        return recipe.method.build(recipe.model, WHOLE)


def _reader(weights: Weights, module: VelocityModel, dtype: torch.dtype) -> Callable[[str], Tensor]:
    """Return a function that reads a parameter of the transformer from the checkpoint.

    Raises ExportError if the checkpoint is one of another network.
    """
    wanted = dict(module.transformer.named_parameters())
    if missing := [name for name in wanted if f"{WRAPPER}{name}" not in weights]:
        raise ExportError(
            f"the checkpoint lacks {', '.join(missing)}: model.teacher of the run's recipe is not "
            "the network that was trained"
        )

    def read(name: str) -> Tensor:
        tensor = weights[f"{WRAPPER}{name}"]()
        if tensor.shape != wanted[name].shape:
            raise ExportError(
                f"{name} has {tuple(tensor.shape)} in the checkpoint and "
                f"{tuple(wanted[name].shape)} in the network of the run's recipe"
            )
        return _finite(name, tensor, dtype)

    return read


def _finite(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a parameter in a dtype; raises ExportError where that cannot hold a value."""
    numbers = tensor.to(dtype)
    if not numbers.isfinite().all():
        way = "give --dtype bf16" if tensor.isfinite().all() else "give an older checkpoint"
        raise ExportError(
            f"{name} has values that are no finite {str(dtype).removeprefix('torch.')}: {way}"
        )
    return numbers
