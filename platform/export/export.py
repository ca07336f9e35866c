"""Export a generator from a checkpoint of a run: a diffusers pipeline with a model card."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from magicdistill.data_pipeline.io.user_files import demand_output_folder
from magicdistill.models.locations import find_weights
from magicdistill.models.networks.autoencoder.vae import VideoVae
from magicdistill.models.networks.backbones.registry import family_of
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.conditioning.prompt_encoder import PromptEncoder
from magicdistill.models.networks.int8 import write_int8
from magicdistill.models.networks.lora import write_lora
from magicdistill.models.networks.weights import MAX_FILE_BYTES, plain_shapes, write_transformer
from magicdistill.models.tensor_files import follow_umask, save_file
from magicdistill.platform.checkpoints.checkpoint_folder import cycle_of
from magicdistill.platform.checkpoints.checkpoints import EMA
from magicdistill.platform.checkpoints.role_weights import role_weights
from magicdistill.platform.config.experts import LOW_NOISE, take_turns
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.export.diffusers_pipeline import (
    TRANSFORMER,
    write_original_lora,
    write_pipeline_lora,
    write_stock_parts,
)
from magicdistill.platform.export.dtypes import DTYPES, DtypeName
from magicdistill.platform.export.model_card import (
    lora_card,
    model_card,
    original_card,
    student_card,
)
from magicdistill.platform.export.pretrained_model import sampler_of
from magicdistill.platform.export.trained_network import (
    ExportError,
    TrainedNetwork,
    find_checkpoint,
    find_network,
    finite,
    weightless,
)

ORIGINAL = "transformer.safetensors"
"""The one file of a network in the names of its family's original code."""


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
    one file of the output is in memory at a time, and the folder appears when it is complete. A
    LoRA student is merged into its frozen weights, which are in memory whole.
    `low_noise` is the run, or the checkpoint, of the expert for low noise levels, which is written
    beside the other. `encoders` is a diffusers folder whose text encoders are also written, in the
    same dtype; they are in memory whole.

    Raises ExportError if the folder is not empty, the checkpoint is damaged, or the role has no
    network of its own; FileNotFoundError if there is no such run.
    """
    demand_new(directory)
    found = find_network(source, runs, role, DTYPES[dtype], say, ema=ema)
    recipe, transformer = found.recipe, found.transformer
    with appearing(directory) as partial:
        folder = partial / TRANSFORMER
        write_transformer(
            transformer, folder, found.read, DTYPES[dtype], max_file_bytes=max_file_bytes
        )
        if dtype == "int8":
            _quantise(folder)
        vae = _load_vae(recipe, say)
        null = _null_prompt(recipe)
        experts: dict[str, Any] = {}
        if low_noise is not None:
            low = find_network(low_noise, runs, role, DTYPES[dtype], say, ema=ema)
            experts = _write_low_noise(low, recipe, partial, dtype)
        write_stock_parts(partial, transformer, sampler_of(recipe), vae, null, experts)
        if encoders is not None:
            PromptEncoder.load(encoders, DTYPES[dtype], int8=dtype == "int8").save(partial)
        card = model_card(
            found.run,
            found.cycle,
            sum(shape.numel() for shape in plain_shapes(transformer).values()),
            dtype,
            family=family_of(transformer),
            config=transformer.config,
            averaged=found.averaged,
            patch_decoder=vae is not None and vae.patch_decoder is not None,
        )
        (partial / "README.md").write_text(card)
        shutil.copy(found.run.recipe_path, partial)
    say(f"{found.where}: the {found.kind} weights of the {role} are in {directory}")


def export_original(
    source: str,
    directory: Path,
    *,
    runs: str = "runs",
    role: str = "generator",
    ema: bool = True,
    dtype: DtypeName = "fp16",
    say: Callable[[str], None] = print,
) -> None:
    """Write a role's network as one file with the names of its family's original code.

    The weights are in memory whole. Raises as `export` does, and ExportError for a family whose
    published files have the names of diffusers alone, and for int8.
    """
    demand_new(directory)
    if dtype == "int8":
        raise ExportError("--format original --dtype int8: give fp16, bf16 or fp32")
    found = find_network(source, runs, role, DTYPES[dtype], say, ema=ema)
    shapes = plain_shapes(found.transformer)
    backbone = family_of(found.transformer).backbone()
    try:
        named = backbone.in_original_names({name: found.read(name) for name in shapes})
    except ValueError as error:
        raise ExportError(f"--format original: {error}") from None
    with appearing(directory) as partial:
        save_file(named, partial / ORIGINAL, {"format": "pt"})
        num_parameters = sum(shape.numel() for shape in shapes.values())
        card = original_card(found.run, found.cycle, num_parameters, dtype, file=ORIGINAL)
        (partial / "README.md").write_text(card)
        shutil.copy(found.run.recipe_path, partial)
    say(f"{found.where}: the {found.kind} weights of the {role} are in {directory / ORIGINAL}")


def _write_low_noise(
    low: TrainedNetwork, high: Recipe, folder: Path, dtype: DtypeName
) -> dict[str, Any]:
    """Write the expert for low noise levels; return the arguments of a pipeline of both.

    Raises ExportError where the runs are not of two experts that take turns at one noise level.
    """
    (start, end), (low_start, low_end) = high.method.noise_levels, low.recipe.method.noise_levels
    if not take_turns((start, end), (low_start, low_end)):
        raise ExportError(
            f"--low_noise {low.run.path.name}: its noise levels are {low_start:g} to {low_end:g} "
            f"and those of the exported run {start:g} to {end:g}; give two runs whose "
            "method.interval meet"
        )
    write_transformer(low.transformer, folder / LOW_NOISE, low.read, DTYPES[dtype])
    if dtype == "int8":
        _quantise(folder / LOW_NOISE)
    return {LOW_NOISE: low.transformer, "boundary_ratio": start}


def export_lora(
    source: str,
    directory: Path,
    *,
    runs: str = "runs",
    of_student: bool = False,
    ema: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Write only a LoRA of a checkpoint, in float32: the weak-to-strong one, or the student.

    `PeftModel.from_pretrained` and diffusers' `load_lora_weights` and `load_lora_adapter` put it on
    the teacher, and where the family has original names, ComfyUI and musubi-tuner two more files.
    Raises as `export` does, and ExportError where the method trains none.
    """
    demand_new(directory)
    run, checkpoint = find_checkpoint(source, runs, say)
    recipe = run.recipe()
    method = weightless(recipe)
    lora = method.student_lora() if of_student else method.lora()
    if lora is None:
        why = "no LoRA"
        if of_student:
            why = "all weights of its generator (method.student.kind full); leave --format out"
        flag = "--format lora" if of_student else "--lora_only"
        raise ExportError(f"{flag}: the method {recipe.method.name} trains {why}")
    averaged = of_student and ema and (checkpoint / EMA).is_dir()
    weights = role_weights(checkpoint / (EMA if averaged else lora.role))
    state = {
        name: finite(name, weights[f"{lora.prefix}{name}"](), torch.float32)
        for name, _ in lora.transformer.named_parameters()
        if "lora_" in name
    }
    base = recipe.model.generator if of_student and recipe.model.generator else recipe.model.teacher
    with appearing(directory) as partial:
        write_lora(lora.transformer, state, partial, base=base)
        write_pipeline_lora(partial)
        write_original_lora(partial, lora.transformer)
        num_parameters = sum(p.numel() for p in state.values())
        write_card = student_card if of_student else lora_card
        (partial / "README.md").write_text(
            write_card(run, cycle_of(checkpoint), num_parameters, lora)
        )
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
