"""This process among those that train together; alone where there is no group."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist
from torch.distributed import distributed_c10d

T = TypeVar("T")
Group = dist.ProcessGroup | None
"""A process group; None for that of the job."""
PATIENCE = timedelta(hours=2)
"""How long a rank waits in a host group for the slowest disk or mirror."""
_group: ContextVar[Group] = ContextVar("group", default=None)


class OtherRankError(Exception):
    """Ends this rank because another one has failed, which raises the cause."""


def host_group() -> Group:
    """Return a new group of all ranks that exchanges through host memory; every rank calls it."""
    if not dist.is_initialized():
        return None
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert isinstance(group, dist.ProcessGroup)  # every rank belongs to it
    return group


def set_timeout(timeout_s: float) -> None:
    """Give every process group that this process is in the same time-out.

    Ray gives one to the job's alone; those that DeepSpeed makes, over which ZeRO exchanges, and
    those of sequence parallelism have torch's own 10 minutes.
    """
    for group in [*distributed_c10d._world.pg_map]:
        distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)


@contextmanager
def within(group: Group) -> Iterator[None]:
    """Let this thread's calls of the functions below exchange in another group than the job's."""
    token = _group.set(group)
    try:
        yield
    finally:
        _group.reset(token)


def rank() -> int:
    """Return this process's number, counted from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait until every rank is here."""
    if dist.is_initialized():
        dist.barrier(group=_group.get())


def of_first(value: T) -> T:
    """Return rank 0's value; every rank calls it."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values, src=0, group=_group.get())
    return values[0]


def of_all(value: T) -> list[T]:
    """Return the value of each rank in their order; every rank calls it."""
    values = [value] * world_size()
    if dist.is_initialized():
        dist.all_gather_object(values, value, group=_group.get())
    return values


def to_first(value: T) -> list[T]:
    """Return the value of each rank on rank 0, nothing on the others; every rank calls it."""
    if not dist.is_initialized():
        return [value]
    values = [value] * world_size() if rank() == 0 else None
    dist.gather_object(value, values, group=_group.get())
    return values or []


def first_succeeds(action: Callable[[], None]) -> None:
    """Let rank 0 act; where it fails, all ranks raise, as by `all_succeed`. Every rank calls it."""
    all_succeed(action if rank() == 0 else lambda: None)


def all_succeed(action: Callable[[], T]) -> T:
    """Return the value of an action that has succeeded on every rank, which call it together.

    The action must not wait for other ranks. Where it fails on some rank, all of them raise: those
    its exception, the others OtherRankError.
    """
    failure, value = None, None
    try:
        value = action()
    except Exception as error:  # no rank may go on alone, whatever it was
        failure = error
    causes = of_all(failure and f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    for number, cause in enumerate(causes):
        if cause:
            raise OtherRankError(f"rank {number} failed with {cause}")
    return value  # type: ignore[return-value]  # no failure: the action has returned it
