"""Where the workers of a job are."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch.distributed as dist


def nodes_of_ranks() -> list[str]:
    """Return the node of every rank; every rank calls it."""
    import ray

    own = f"{ray.util.get_node_ip_address()} ({ray.get_runtime_context().get_node_id()[:8]})"
    nodes = [own] * dist.get_world_size()
    dist.all_gather_object(nodes, own)
    return nodes


def describe_nodes(nodes: Sequence[str], sequence_parallel: int) -> Iterator[str]:
    """Yield a line for each node's ranks, and for each sequence group that leaves its node."""
    for node, group in groupby(range(len(nodes)), key=nodes.__getitem__):
        ranks = list(group)
        yield f"ranks {ranks[0]} to {ranks[-1]} are on node {node}"
    for start in range(0, len(nodes), sequence_parallel):
        if len(set(nodes[start : start + sequence_parallel])) > 1:
            yield (
                f"ranks {start} to {start + sequence_parallel - 1} share their samples over the "
                "network: cluster.sequence_parallel does not divide the workers of a node"
            )
