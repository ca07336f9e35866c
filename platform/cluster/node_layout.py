"""Where the workers of a job are."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch.distributed as dist


def nodes_of_ranks() -> list[str]:
    """Return the node of every rank, as `address (start of its id)`; every rank calls it.

    The id distinguishes nodes that share an address, as those of a rehearsal do.
    """
    import ray

    own = f"{ray.util.get_node_ip_address()} ({ray.get_runtime_context().get_node_id()[:8]})"
    nodes = [own] * dist.get_world_size()
    dist.all_gather_object(nodes, own)
    return nodes


def describe_nodes(nodes: Sequence[str], sequence_parallel: int) -> Iterator[str]:
    """Yield a line for each node's ranks, and one for each sequence group on more than one node.

    `nodes` are those of the ranks in their order, `sequence_parallel` the ranks of a group.
    """
    for node, group in groupby(range(len(nodes)), key=nodes.__getitem__):
        ranks = list(group)
        yield f"ranks {ranks[0]} to {ranks[-1]} are on node {node}"
    for start in range(0, len(nodes), sequence_parallel):
        if len(set(nodes[start : start + sequence_parallel])) > 1:
            yield (
                f"ranks {start} to {start + sequence_parallel - 1} share their samples over the "
                "network: cluster.sequence_parallel does not divide the workers of a node"
            )
