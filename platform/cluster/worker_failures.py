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


class TrainingError(ExplainedError):
    """Says which workers failed, by rank, each with its cause."""


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
    nodes: list[str] = []
    with suppress(OSError, ValueError):
        nodes = json.loads(run.nodes_path.read_text())
    ranks: dict[str, list[str]] = {}
    causes = {rank: error for rank, error in failures.items() if not _follows_another(error)}
    for rank, error in sorted((causes or failures).items()):
        node = f" on {nodes[rank]}" if rank < len(nodes) else ""
        ranks.setdefault(_cause(error), []).append(f"{rank}{node}")
    return [f"rank{'s' * (len(on) > 1)} {', '.join(on)}: {cause}" for cause, on in ranks.items()]


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
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    words = " ".join(str(death).split())
    reason = re.sub(r".*?(?:dead|died) because ", "", words, count=1)
    return f"died: {textwrap.shorten(reason, MAX_CAUSE_CHARS, placeholder=' ...')}"
