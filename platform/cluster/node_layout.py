"""Where the workers of a job are."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch.distributed as dist

from magicdistill.platform.cluster.worker_failures import FinalError


class LayoutError(FinalError):
    """A sequence group whose ranks are on several nodes."""


def nodes_of_ranks() -> list[str]:
    """Return the node of every rank, as `address (start of its id)`; every rank calls it.

    The id distinguishes nodes that share an address, as those of a rehearsal do.
    """
    import ray

    own = f"{ray.util.get_node_ip_address()} ({ray.get_runtime_context().get_node_id()[:8]})"
    nodes = [own] * dist.get_world_size()
    dist.all_gather_object(nodes, own)
    return nodes


def describe_nodes(nodes: Sequence[str]) -> Iterator[str]:
    """Yield a line for each node's ranks; `nodes` are those of the ranks in their order."""
    for node, group in groupby(range(len(nodes)), key=nodes.__getitem__):
        ranks = list(group)
        yield f"ranks {ranks[0]} to {ranks[-1]} are on node {node}"


def demand_whole_groups(nodes: Sequence[str], sequence_parallel: int) -> None:
    """Raise LayoutError where the ranks of a sequence group are on several nodes.

    They exchange the tokens of every block, for which the network between nodes is too slow. Ray
    orders the ranks by node; `nodes` are theirs.
    """
    for start in range(0, len(nodes), sequence_parallel):
        group = nodes[start : start + sequence_parallel]
        if len(set(group)) > 1:
            sizes = ", ".join(str(nodes.count(node)) for node in dict.fromkeys(nodes))
            raise LayoutError(
                f"cluster.sequence_parallel {sequence_parallel}: ranks {start} to "
                f"{start + len(group) - 1} share their samples, and are on "
                f"{' and '.join(dict.fromkeys(group))}; give one that divides the workers of "
                f"every node, which are {sizes}"
            )
