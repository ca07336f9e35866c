"""This process among those that train together; alone where there is no group."""

import torch.distributed as dist


def rank() -> int:
    """Return this process's number."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for all."""
    if dist.is_initialized():
        dist.barrier()
