"""Make many videos on Ray actors, one per GPU; videos that exist already are not made again."""

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from pydantic import ValidationError
from ray.util import ActorPool

from magicdistill.data_pipeline.progress import Bars
from magicdistill.models.config import Config
from magicdistill.platform.cluster.ray_cluster import ray_cluster
from magicdistill.platform.config.sections import ClusterConfig
from magicdistill.platform.export.pretrained_model import Pretrained
from magicdistill.platform.inference.sample_video import Order, VideoSampler, is_made
from magicdistill.platform.runs.logs import ExplainedError, say


class Line(Config):
    """One line of a list of inputs."""

    image: Path | None = None
    """The first frame; a relative path starts at the folder of the list, and null makes one for the
    prompt."""
    name: str | None = None
    """Name of the video; null joins the line number and the name of the image."""
    prompt: str | None = None
    seed: int | None = None
    """Seed of the noise; null is the seed of the job plus the line number, counted from 0."""
    seconds: float | None = None


def read_orders(
    path: Path, folder: Path, defaults: Order, complete: Callable[[Order], Order]
) -> list[Order]:
    """Read a JSONL list of inputs; `defaults` fills in what a line leaves out.

    `complete` makes a first frame for a line that has none. Raises ExplainedError that names the
    wrong line, or the names that occur twice.
    """
    if not path.is_file():
        raise ExplainedError(f"--inputs: there is no file {path}")
    texts = [text for text in path.read_text().splitlines() if text.strip()]
    lines = [_parse(path, number, text) for number, text in enumerate(texts)]
    orders = [
        _order(line, number, path.parent, folder, defaults) for number, line in enumerate(lines)
    ]
    outs = [order.out for order in orders]
    if twice := {out.stem for out in outs if outs.count(out) > 1}:
        raise ExplainedError(f"{path}: several videos have the name {', '.join(sorted(twice))}")
    return [
        order if line.image else complete(order) for line, order in zip(lines, orders, strict=True)
    ]


def _parse(path: Path, number: int, text: str) -> Line:
    try:
        return Line.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ExplainedError(
            f"{path}, line {number + 1}: {where} {first['msg']}; a line is "
            f"{json.dumps({'image': 'face.png'})} with any of {', '.join(Line.model_fields)}"
        ) from None


def _order(line: Line, number: int, beside: Path, folder: Path, defaults: Order) -> Order:
    given = f"{number:04d}-{line.image.stem}" if line.image else f"{number:04d}"
    name = line.name or given
    return Order(
        image=beside / line.image if line.image else defaults.image,
        out=folder / f"{name}.mp4",
        seed=defaults.seed + number if line.seed is None else line.seed,
        prompt=defaults.prompt if line.prompt is None else line.prompt,
        seconds=defaults.seconds if line.seconds is None else line.seconds,
        overlap=defaults.overlap,
        pull=defaults.pull,
    )


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
    with ray_cluster(cluster) as shape:
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
