"""Make many videos on Ray actors, one per GPU; videos that exist already are not made again."""

import math
import os
from collections.abc import Sequence
from typing import Any

import ray
import torch
from ray.util import ActorPool

from magicdistill.data_pipeline.io.whole_files import without_leftovers
from magicdistill.data_pipeline.progress import Bars
from magicdistill.platform.cluster.ray_cluster import ray_cluster
from magicdistill.platform.config.sections import ClusterConfig
from magicdistill.platform.export.pretrained_model import Pretrained
from magicdistill.platform.inference.orders import Order
from magicdistill.platform.inference.sample_video import VideoSampler, is_made
from magicdistill.platform.runs.logs import ExplainedError, say


@ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=1)
class SamplingActor:
    """An actor that makes one video after another with a model of its own."""

    def __init__(self, model: Pretrained) -> None:
        torch.set_num_threads(1)
        self.sampler = VideoSampler(model)

    def make(self, order: Order) -> tuple[Order, str | None]:
        """Write the video; return the reason if that cannot be done, otherwise None."""
        try:
            self.sampler.make(order)
        except ExplainedError as error:
            return order, str(error)
        return order, None


def sample_all(
    model: Pretrained,
    orders: Sequence[Order],
    *,
    num_actors: int | None = None,
    address: str | None = None,
) -> list[str]:
    """Make the missing videos; return a line about each that could not be made.

    `num_actors` defaults to one per GPU of the cluster, or one per core if it has no GPUs.
    """
    missing = [order for order in orders if not is_made(model, order)]
    say(f"{len(orders)} videos, {len(orders) - len(missing)} of them made already")
    if not missing:
        return []
    wanted = min(len(missing), num_actors or os.cpu_count() or 1)
    cluster = ClusterConfig(address=address, logical_cpus=wanted, dashboard=False)
    bars, failures = Bars("video"), []
    outputs = [path for order in missing for path in order.files]
    with without_leftovers(outputs), ray_cluster(cluster) as shape:
        count = min(len(missing), num_actors or math.floor(shape.num_gpus) or wanted)
        options = {"num_gpus": 1 if shape.num_gpus else 0}
        say(f"{count} actor(s), {options['num_gpus']} GPU each")
        bars("sampling", 0, len(missing))
        actors: Any = SamplingActor.options(**options)
        pool = ActorPool([actors.remote(model) for _ in range(count)])
        results: Any = pool.map_unordered(lambda actor, order: actor.make.remote(order), missing)
        for done, (order, failure) in enumerate(results, start=1):
            if failure:
                failures.append(f"{order.out.name}: {failure}")
            bars("sampling", done, len(missing))
    return failures
