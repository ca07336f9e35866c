"""What became of workers that failed: their ranks and nodes, their causes, and where to read on."""

import json
import re
import textwrap
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from magicdistill.data_pipeline.io.whole_files import write_text
from magicdistill.platform.cluster.ranks import OtherRankError
from magicdistill.platform.runs.logs import ExplainedError
from magicdistill.platform.runs.run_directory import RunDirectory

MAX_CAUSE_CHARS = 300
LOST_A_PEER = re.compile(
    r"connection (closed|reset|refused)|broken pipe|gloo|nccl|socket|timed out waiting",
    re.IGNORECASE,
)
"""What the rest of a group raises where one of it is gone."""


NODE = re.compile(r"(\S+) \((\w+)\)")
"""How a rank's node is written down: its address and the start of its id."""
BROKEN_GPU = re.compile(r"CUDA error|cudaError|\bECC\b|multiplies matrices wrongly")
"""What a worker raises whose GPU, or its driver, has failed."""
LESS_MEMORY = (
    "give more schedule.num_micro_batches or cluster.sequence_parallel, recompute more of the "
    "blocks (kernels) or offload the optimiser (engine); jobs/plan.py shows what each saves"
)


class TrainingError(ExplainedError):
    """Says which workers failed, by rank, each with its cause."""


class FinalError(ExplainedError):
    """Fails a group of workers that would fail in the same way again: Ray starts it no more."""


class GpuMemoryError(FinalError):
    """A worker that found no room on its GPU."""


@contextmanager
def explained_memory() -> Iterator[None]:
    """Turn a GPU that is full into an error that says its peak and what needs less.

    Raises:
        GpuMemoryError: instead of torch's OutOfMemoryError.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
        raise GpuMemoryError(
            f"the GPU's memory is full, of which tensors took {peak / 2**30:.1f} GiB at the peak "
            f"({_first_line(error)}): {LESS_MEMORY}"
        ) from error


@contextmanager
def recorded_failure(run: RunDirectory, rank: int) -> Iterator[None]:
    """Add a worker's traceback to the run's errors, also where Ray starts the workers again."""
    try:
        yield
    except Exception:
        # where the disk is full, that is the failure to report, not that it cannot be recorded
        with suppress(OSError), run.errors_path.open("a") as file:
            file.write(f"rank {rank}\n{traceback.format_exc()}\n")
        raise


@contextmanager
def explained_failure(run: RunDirectory) -> Iterator[None]:
    """Turn the failure of a worker group into one that names ranks, causes and where to read on.

    Raises:
        TrainingError: if workers failed.
    """
    from ray.train.v2.api.exceptions import WorkerGroupError

    try:
        yield
    except WorkerGroupError as error:
        causes = [f"  {line}" for line in describe_failures(run, error.worker_failures)]
        where = f"tracebacks: {run.errors_path}"
        raise TrainingError("\n".join(["training failed", *causes, where])) from error


def record_nodes(run: RunDirectory, nodes: Sequence[str]) -> None:
    """Keep the node of each rank, for those that cannot say any more where they were."""
    with suppress(OSError):
        write_text(run.nodes_path, json.dumps(list(nodes)))


def describe_failures(run: RunDirectory, failures: Mapping[int, Exception]) -> list[str]:
    """Return a line for each cause, with its ranks and their nodes.

    What other ranks raise because one has failed is no cause, and left out.
    """
    nodes = _nodes(run)
    ranks: dict[str, list[str]] = {}
    for rank, error in sorted((_causes(failures) or failures).items()):
        node = f" on {nodes[rank]}" if rank < len(nodes) else ""
        ranks.setdefault(_cause(error), []).append(f"{rank}{node}")
    return [f"rank{'s' * (len(on) > 1)} {', '.join(on)}: {cause}" for cause, on in ranks.items()]


def lost_nodes(run: RunDirectory, failures: Mapping[int, Exception]) -> set[tuple[str, str]]:
    """Return the nodes on which a process was lost or a GPU failed: address and start of the id.

    One that was taken away in good order is none of them; and where all of several nodes are lost
    at once, as by a hang, which torch ends everywhere, it is the fault of none.
    """
    nodes = _nodes(run)
    lost = {
        nodes[rank]
        for rank, error in _causes(failures).items()
        if rank < len(nodes) and _is_of_the_node(error)
    }
    if len(lost) > 1 and lost == {*nodes}:
        return set()
    return {(found[1], found[2]) for node in lost if (found := NODE.fullmatch(node))}


def _nodes(run: RunDirectory) -> list[str]:
    """Return the node of each rank, as `record_nodes` has written it; none where it could not."""
    with suppress(OSError, ValueError):
        return json.loads(run.nodes_path.read_text())
    return []


def _causes(failures: Mapping[int, Exception]) -> dict[int, Exception]:
    return {rank: error for rank, error in failures.items() if not _follows_another(error)}


def _is_of_the_node(error: Exception) -> bool:
    from ray.exceptions import RayActorError

    death = getattr(error, "health_check_failure", error)
    if isinstance(death, RayActorError):
        return not death.preempted
    return not isinstance(error, ExplainedError) and BROKEN_GPU.search(str(error)) is not None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def _follows_another(error: Exception) -> bool:
    is_plain = isinstance(error, RuntimeError) and not isinstance(error, ExplainedError)
    return isinstance(error, OtherRankError) or (
        is_plain and LOST_A_PEER.search(str(error)) is not None
    )


def _cause(error: Exception) -> str:
    """Return in a line why a worker failed, or why its process died."""
    from ray.exceptions import RayActorError

    death = getattr(error, "health_check_failure", error)
    if not isinstance(death, RayActorError):
        return f"{type(error).__name__}: {_first_line(error)}"
    words = " ".join(str(death).split())
    reason = re.sub(r".*?(?:dead|died) because ", "", words, count=1)
    return f"died: {textwrap.shorten(reason, MAX_CAUSE_CHARS, placeholder=' ...')}"
