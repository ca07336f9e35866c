"""The one place of data_pipeline that meets Ray: stages run in pools of Ray Data's actors."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import pyarrow as pa
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

MAX_BLOCKS = 2048
"""Most blocks in one Ray Data pipeline; with 16 videos a block that is about 64 MB of rows."""
T = TypeVar("T")


def run_in_actors(
    blocks: Iterator[pa.Table],
    stage: type,
    arguments: tuple[Any, ...],
    num_actors: int,
    num_gpus: float = 0.0,
    before_work: Callable[[], object] = lambda: None,
) -> Iterator[pa.Table]:
    """Run a stage over blocks in a pool of actors; yield the results as they are finished.

    All blocks of a pipeline are in the object store from its start, so there are many pipelines,
    one after the other, where there are many blocks.

    Args:
        blocks: the blocks.
        stage: a class whose objects are called with a block.
        arguments: what its constructor takes.
        num_actors: most actors, one logical CPU each.
        num_gpus: GPUs that each actor reserves.
        before_work: called before each pipeline, so never if there is no block.
    """
    while some := list(islice(blocks, MAX_BLOCKS)):
        before_work()
        yield from _run_once(some, stage, arguments, num_actors, num_gpus)


def _run_once(
    blocks: Sequence[pa.Table],
    stage: type,
    arguments: tuple[Any, ...],
    num_actors: int,
    num_gpus: float,
) -> Iterator[pa.Table]:
    with _quiet_ray_data():
        dataset = ray.data.from_blocks(list(blocks)).map_batches(
            stage,
            fn_constructor_args=arguments,
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=min(num_actors, len(blocks))),
            num_cpus=1,
            num_gpus=num_gpus or None,
        )
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def run_here(function: Callable[..., T], *args: Any) -> T:
    """Call a function; if Ray runs, in a worker on this node.

    It is for what imports packages for seconds that the workers need anyway.
    """
    if not ray.is_initialized():
        return function(*args)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    task: Any = ray.remote(function)
    return ray.get(task.options(num_cpus=0, scheduling_strategy=here).remote(*args))


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Silence Ray Data's progress bars and plans, because the stages report progress themselves."""
    context = ray.data.DataContext.get_current()
    bars = context.enable_progress_bars
    loggers = {
        logging.getLogger("ray.data"): logging.WARNING,  # plans and resource tables
        logging.getLogger("ray.data._internal.progress"): logging.ERROR,  # "bars are disabled"
    }
    levels = {log: log.level for log in loggers}
    context.enable_progress_bars = False
    for log, level in loggers.items():
        log.setLevel(max(level, log.getEffectiveLevel()))
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        for log, level in levels.items():
            log.setLevel(level)
