"""Which GPUs the nodes of a cluster have. A small module: a task on each node imports it."""

import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

QUERY = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
DRIVER_S = 10
"""Seconds in which a machine's driver must answer."""
NODES_S = 60
"""Seconds in which every node must answer."""

Gpus = list[tuple[str, float]]
"""Name and bytes of each GPU of a machine."""


def gpus_by_node(nodes: Sequence[Mapping[str, Any]]) -> dict[str, Gpus]:
    """Ask each node that has GPUs by Ray's account; return by address what it has.

    `nodes` are living ones, as `ray.nodes()` describes them. The task reserves nothing. A node
    that does not answer has none.
    """
    asked = {
        node["NodeManagerAddress"]: ray.remote(local_gpus)
        .options(
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        )
        .remote()
        for node in nodes
        if node["Resources"].get("GPU")
    }
    if not asked:
        return {}
    ready, _ = ray.wait([*asked.values()], num_returns=len(asked), timeout=NODES_S)
    return {name: ray.get(answer) if answer in ready else [] for name, answer in asked.items()}


def local_gpus() -> Gpus:
    """Return the GPUs of this machine; none where no driver answers."""
    try:
        said = subprocess.run(QUERY, capture_output=True, text=True, timeout=DRIVER_S)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.rsplit(",", 1) for line in said.stdout.splitlines() if "," in line]
    return [(name.strip(), float(mib) * 2**20) for name, mib in rows]
