"""What Ray Train's controller is told beyond its options: which failures end a run, which nodes go.

The one place that reaches into Ray Train's own modules. Its tests fail where a release of Ray has
moved them.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.failure_handling import (
    DefaultFailurePolicy,
    FailureDecision,
)

from magicdistill.platform.cluster.worker_failures import FinalError, lost_nodes
from magicdistill.platform.runs.run_directory import RunDirectory

NODE_ID = "ray.io/node-id"
"""The label of each node with its id."""
MAX_FAILURES = 2
"""Failures after which a node is left out."""


class FinalFailures(DefaultFailurePolicy):
    """Starts nothing again after a failure that would only repeat itself."""

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        """Return what to do about a failure."""
        failures = getattr(training_failed_error, "worker_failures", {})
        if any(isinstance(error, FinalError) for error in failures.values()):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


class Trainer(TorchTrainer):
    """Ray Train's trainer, whose restarts follow `FinalFailures`."""

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        assert self.run_config.failure_config is not None
        policy = FinalFailures(self.run_config.failure_config)
        return super()._initialize_and_run_controller(**options | {"failure_policy": policy})


class FailedNodes(ControllerCallback):
    """Leaves nodes that failed twice out of the next start, where the others have room for all."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.failures = Counter[tuple[str, str]]()
        """Failures by address and start of the id of a node."""

    def note(self, failures: Mapping[int, Exception]) -> None:
        """Count the nodes on which workers of a group were lost, or a GPU failed."""
        self.failures.update(lost_nodes(self.run, failures))

    def on_controller_start_worker_group(
        self, *, scaling_config: Any, num_workers: int
    ) -> dict[str, str] | None:
        """Return the labels that the nodes of the next group of workers must have."""
        wanted = scaling_config._resources_per_worker_not_none
        nodes = [n for n in ray.nodes() if n["Alive"] and _places(n, wanted)]
        addresses = Counter(node["NodeManagerAddress"] for node in nodes)
        failed = {
            node["NodeID"]: f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"
            for node in nodes
            if self._count(node, addresses) >= MAX_FAILURES
        }
        if not failed or len(nodes) == 1:
            return None
        names = ", ".join(failed.values())
        left = sum(_places(node, wanted) for node in nodes if node["NodeID"] not in failed)
        if left < num_workers:
            self.run.say(
                f"warning: node {names} failed {MAX_FAILURES} times, and is used again: the others "
                f"have room for {left} of {num_workers} workers; add a node"
            )
            return None
        self.run.say(f"node {names} failed {MAX_FAILURES} times, and is left out; replace it")
        return {NODE_ID: f"!in({', '.join(failed)})"}

    def _count(self, node: Mapping[str, Any], addresses: Mapping[str, int]) -> int:
        """Return the failures of a node, also under an id that it had before Ray was restarted."""
        own = node["NodeManagerAddress"]
        return sum(
            count
            for (address, start), count in self.failures.items()
            if node["NodeID"].startswith(start) or (address == own and addresses[own] == 1)
        )


def _places(node: Mapping[str, Any], wanted: Mapping[str, float]) -> int:
    """Return how many workers have room on a node, whatever runs there now."""
    return min(int(node["Resources"].get(name, 0) // count) for name, count in wanted.items())
