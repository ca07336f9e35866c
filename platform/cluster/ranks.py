"""This process among those that train together; alone where there is no group."""

from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def rank() -> int:
    """Return this process's number, counted from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait until every rank is here."""
    if dist.is_initialized():
        dist.barrier()


def of_first(value: T) -> T:
    """Return rank 0's value; every rank calls it."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def of_all(value: T) -> list[T]:
    """Return the value of each rank in their order; every rank calls it."""
    values = [value] * world_size()
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values
