"""Find a role's trained network in a checkpoint, and read its parameters one by one."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import ModelMixin
from torch import Tensor

from magicdistill.models.methods.build import untrained_generator
from magicdistill.models.networks.lora import merged
from magicdistill.models.networks.placement import WHOLE
from magicdistill.models.networks.state_dicts import WRAPPER
from magicdistill.models.networks.transformer import VelocityModel
from magicdistill.models.objectives.types import Method
from magicdistill.models.paths import local_path
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
from magicdistill.platform.planning.preflight import demand_fitting_weights
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.runs.run_lock import RunInUseError, locked


class ExportError(Exception):
    """Nothing was exported; the message says why and what to do."""


class TrainedNetwork(NamedTuple):
    """A role's network in a checkpoint."""

    run: RunDirectory
    recipe: Recipe
    cycle: int
    transformer: ModelMixin
    """The network without storage."""
    averaged: bool
    read: Callable[[str], Tensor]
    """Returns a parameter of the plain network by its name."""

    @property
    def kind(self) -> str:
        """Which weights they are."""
        return "averaged" if self.averaged else "last"

    @property
    def where(self) -> str:
        """The run and the cycle."""
        return f"{self.run.path.name}, cycle {self.cycle}"


def find_network(
    source: str,
    runs: str,
    role: str,
    dtype: torch.dtype,
    say: Callable[[str], None],
    *,
    ema: bool,
) -> TrainedNetwork:
    run, checkpoint = find_checkpoint(source, runs, say)
    recipe = run.recipe()
    transformer = _network(recipe, role).transformer
    averaged = ema and (checkpoint / EMA).is_dir()
    weights = role_weights(checkpoint / (EMA if averaged else role))
    read = _reader(weights, transformer, recipe, dtype)
    return TrainedNetwork(run, recipe, cycle_of(checkpoint), transformer, averaged, read)


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
    modules = weightless(recipe).modules
    module = modules.get(role)
    if not isinstance(module, VelocityModel):
        whole = [name for name, other in modules.items() if isinstance(other, VelocityModel)]
        raise ExportError(
            f"--role {role}: the run trains {', '.join(modules)}, and of these "
            f"{', '.join(whole) or 'none'} is a whole transformer"
        )
    return module


def weightless(recipe: Recipe) -> Method:
    """Build the recipe's method with networks that have no storage."""
    try:
        demand_fitting_weights(recipe, trained=False)
    except RecipeError as error:
        raise ExportError(str(error)) from None
    with torch.device("meta"):
        return recipe.method.build(recipe.model, WHOLE)


def _reader(
    weights: Weights, transformer: ModelMixin, recipe: Recipe, dtype: torch.dtype
) -> Callable[[str], Tensor]:
    """Return a function that reads a parameter of the plain network from the checkpoint.

    What is frozen is no part of the checkpoint, and comes from the recipe's weights.
    Raises ExportError if the checkpoint is one of another network.
    """
    parameters = dict(transformer.named_parameters())
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    if missing := [name for name in trained if f"{WRAPPER}{name}" not in weights]:
        raise ExportError(
            f"the checkpoint lacks {', '.join(missing)}: model.teacher of the run's recipe is not "
            "the network that was trained"
        )
    frozen: dict[str, Tensor] = {}
    if len(trained) < len(parameters):
        frozen = dict(
            untrained_generator(recipe.model, recipe.method.generator_lora).named_parameters()
        )

    def read_own(name: str) -> Tensor:
        if name not in trained:
            return frozen[name].detach()
        tensor = weights[f"{WRAPPER}{name}"]()
        if tensor.shape != trained[name].shape:
            raise ExportError(
                f"{name} has {tuple(tensor.shape)} in the checkpoint and "
                f"{tuple(trained[name].shape)} in the network of the run's recipe"
            )
        return tensor

    read = merged(transformer, read_own)

    def read_rounded(name: str) -> Tensor:
        tensor = read(name)
        assert tensor is not None, "one process reads all"
        return finite(name, tensor, dtype)

    return read_rounded


def finite(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a parameter in a dtype; raises ExportError where that cannot hold a value."""
    numbers = tensor.to(dtype)
    if not numbers.isfinite().all():
        way = "give --dtype bf16" if tensor.isfinite().all() else "give an older checkpoint"
        raise ExportError(
            f"{name} has values that are no finite {str(dtype).removeprefix('torch.')}: {way}"
        )
    return numbers
