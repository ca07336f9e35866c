"""Where engines keep the state of a role, and how it is saved and restored in flat shards.

State is saved by parameter and position in it, never by rank or engine: that is why any number of
ranks, with DeepSpeed at any stage of ZeRO or in plain PyTorch, reads what another one wrote.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from magicdistill.platform.checkpoints.flat_shards import (
    WEIGHT,
    FlatShard,
    FlatShardReader,
    Snapshot,
    take_snapshot,
)


@dataclass(frozen=True)
class ShardPlace:
    """Where this rank keeps a slice of a flattened parameter for its optimiser.

    The `size` numbers from `start` lie in `owner`, a tensor that the optimiser updates, from
    `offset` on.
    """

    name: str
    """Name of the parameter."""
    start: int
    """First number of the slice, counted in the flattened parameter."""
    owner: Tensor
    """Weights in the optimiser's precision, of one parameter or of many."""
    offset: int
    """First number of the slice, counted in the flattened owner."""
    size: int
    """Length of the slice."""

    def piece(self, kind: str, like_owner: Tensor) -> FlatShard:
        """Return the slice of a tensor that has the owner's shape, such as a moment of it."""
        values = like_owner.detach().view(-1)[self.offset : self.offset + self.size]
        return FlatShard(f"{kind}/{self.name}", self.start, values)


def owners(places: Iterable[ShardPlace]) -> list[Tensor]:
    """Return the tensors in which the values of a rank lie, each once."""
    return list({id(place.owner): place.owner for place in places}.values())


def snapshot_role(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: LambdaLR,
    places: Iterable[ShardPlace],
    *,
    replicated: bool,
) -> Snapshot:
    """Copy what this rank holds, or its share where all ranks hold the same (`replicated`).

    Every rank calls it.
    """
    return take_snapshot(
        optimizer_shards(optimizer, places),
        {name: shape_of(p) for name, p in trainable(module).items()},
        {"schedule_step": schedule.last_epoch},
        replicated=replicated,
    )


def load_role(
    directory: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: LambdaLR,
    places: Iterable[ShardPlace],
) -> None:
    """Fill the optimiser's weights and moments, and the module's weights.

    Those may be rounded copies of the optimiser's, so they are filled by themselves. Raises
    FileNotFoundError where nothing was saved, ValueError where a value is missing.
    """
    reader = FlatShardReader(directory)
    restore_optimizer(optimizer, places, reader)
    for name, parameter in trainable(module).items():
        reader.fill(local_flat_shard(f"{WEIGHT}/{name}", parameter, local_shard(parameter)))
    schedule.last_epoch = reader.facts["schedule_step"]


def optimizer_shards(
    optimizer: torch.optim.Optimizer, places: Iterable[ShardPlace]
) -> Iterator[FlatShard]:
    """Yield the weights that an optimiser updates, its moments and its step counts."""
    for home in places:
        yield home.piece(WEIGHT, home.owner)
        for kind, value in optimizer.state.get(home.owner, {}).items():
            if value.dim():
                yield home.piece(kind, value)  # a moment; a step count has no axis
            else:
                yield FlatShard(f"{kind}/{home.name}", 0, value.view(1))


def restore_optimizer(
    optimizer: torch.optim.Optimizer, places: Iterable[ShardPlace], reader: FlatShardReader
) -> None:
    """Fill the tensors of an optimiser and its state for them with what is stored."""
    places = list(places)
    # Adam makes its state in the first step; to be filled, it has to be there.
    for home in places:
        if f"step/{home.name}" in reader and not optimizer.state.get(home.owner):
            optimizer.state[home.owner] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(home.owner),
                "exp_avg_sq": torch.zeros_like(home.owner),
            }
    for piece in optimizer_shards(optimizer, places):
        if piece.name in reader or piece.name.startswith(WEIGHT):
            reader.fill(piece)


def zero_shard_places(engine: Any) -> list[ShardPlace]:
    """Return where this rank of a DeepSpeed engine keeps the fp32 values that are updated."""
    parameters: dict[str, Any] = trainable(engine.module)
    optimizer = engine.optimizer
    match engine.zero_optimization_stage():
        case 0:
            return [ShardPlace(n, 0, p, 0, p.numel()) for n, p in parameters.items()]
        case 3:
            return [_place_of_shard(optimizer, n, p) for n, p in parameters.items()]
    # A parameter of which nothing lies in this rank's partition has no mapping.
    return [_place_in_partition(optimizer, n, p) for n, p in parameters.items() if p._hp_mapping]


@torch.no_grad()
def refresh_zero_weights(engine: Any) -> None:
    """Copy the fp32 values of a DeepSpeed engine to the weights that forwards read."""
    match engine.zero_optimization_stage():
        case 0:
            return  # they are those
        case 3:
            # parameters that are gathered for the next forward would hide what is written here
            engine.optimizer.empty_partition_cache()
            parameters = trainable(engine.module)
            for place in zero_shard_places(engine):
                parameter = parameters[place.name]
                shard = local_flat_shard(place.name, parameter, local_shard(parameter))
                shard.values.copy_(place.piece(WEIGHT, place.owner).values)
        case _:
            engine.optimizer.update_lp_params()


def _place_in_partition(optimizer: Any, name: str, parameter: Any) -> ShardPlace:
    """Return the place under ZeRO 1 and 2, which share out one flat tensor of each group's
    parameters."""
    held = parameter._hp_mapping
    # DeepSpeed trains bfloat16 with float32 gradients at stage 1 by an optimiser of its own
    in_bf16 = getattr(optimizer, "fp32_groups_flat_partition", None)
    owners = in_bf16 or optimizer.single_partition_of_fp32_groups
    owner = owners[held.param_group_index]
    place = held.hp_fragment_address
    return ShardPlace(name, held.lp_fragment_address.start, owner, place.start, place.numel)


def _place_of_shard(optimizer: Any, name: str, parameter: nn.Parameter) -> ShardPlace:
    """Return the place under ZeRO 3, which shares out each parameter.

    A rank's shards of all parameters lie one behind the other in flat tensors.
    """
    group, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
    shard = local_flat_shard(name, parameter, local_shard(parameter))
    owner = optimizer.fp32_partitioned_groups_flat[group]
    return ShardPlace(name, shard.start, owner, offset, shard.values.numel())


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that a role's engine trains, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def local_shard(parameter: nn.Parameter) -> Tensor:
    """Return the part of a parameter that this rank stores: all of it, except under ZeRO 3."""
    return getattr(parameter, "ds_tensor", parameter.data)


def local_flat_shard(name: str, parameter: nn.Parameter, shard: Tensor) -> FlatShard:
    """Return what this rank holds of a parameter in `shard`, without the padding of ZeRO 3.

    All shards of a parameter have one length there, so the last ones may end past the parameter.
    """
    start = dist.get_rank() * shard.numel() if hasattr(parameter, "ds_id") else 0
    size = max(0, min(shard.numel(), shape_of(parameter).numel() - start))
    return FlatShard(name, start, shard.detach().view(-1)[:size])


def shape_of(parameter: nn.Parameter) -> torch.Size:
    """Return the shape of the whole parameter, also where it is sharded."""
    return getattr(parameter, "ds_shape", parameter.shape)
