"""A driver for test_prefetching.py: train with every method under ZeRO-3 and count fetches."""

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.data.batches import deal
from magicdistill.platform.data.stream_source import build_producer
from magicdistill.platform.engines import engine
from magicdistill.platform.engines.deepspeed_import import import_deepspeed
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.training.worker import Worker
from tests.integration.platform.training.golden_losses_job import (
    CASES,
    LATENTS,
    recipe_of,
    write_pixels,
)
from tests.tiny_run import write_cache

GATHER = "_PartitionedParameterCoordinator__all_gather_params"
SMALL_LIMITS = {
    "stage3_max_reuse_distance": 50_000,
    "stage3_max_live_parameters": 1_700_000,
    "stage3_prefetch_bucket_size": 85_000,
}
"""DeepSpeed's own hold this network as a whole. Beside a block these are not larger than those
are in the network of 13 billion parameters, where they hold three blocks."""


def recipe_at_stage_3(case: str) -> Recipe:
    """Return a recipe that trains all roles in every cycle, and recomputes as the 13B ones do."""
    values = recipe_of(case).model_dump()
    values["engine"] = {"kind": "deepspeed", "zero_stage": 3}
    values["kernels"]["recompute_blocks"] = "full"
    values["schedule"]["num_micro_batches"] = 1
    if "warmup_cycles" in values["method"]:
        values["method"] |= {"warmup_cycles": 0, "num_fake_updates": 1}
    return Recipe.model_validate(values)


def worker_of(case: str, data: AnyPath, folder: Path) -> Worker:
    recipe = recipe_at_stage_3(case)
    worker = Worker(RunDirectory.create(folder, recipe, case), data, None, rank=0, world_size=1)
    if recipe.pairs is not None:
        positions = deal(recipe.schedule, 1, rank=0, world_size=1)
        make = build_producer(recipe, data, positions)
        worker.loop.batches = lambda step, micro: make(positions.index(step, micro))
    return worker


@contextmanager
def small_limits() -> Iterator[None]:
    """Build engines with the small limits in the body."""
    ours = engine.deepspeed_config

    def with_limits(*args: Any) -> dict[str, Any]:
        settings = ours(*args)
        return settings | {"zero_optimization": settings["zero_optimization"] | SMALL_LIMITS}

    engine.deepspeed_config = with_limits
    try:
        yield
    finally:
        engine.deepspeed_config = ours


@contextmanager
def counting(found: Counter[str]) -> Iterator[None]:
    """Count traces that are thrown away, parameters that are gathered, and those of them that a
    module waits for because nothing asked for them earlier (`late`)."""
    import_deepspeed()
    from deepspeed.runtime.zero import partitioned_param_coordinator as library

    coordinator: Any = library.PartitionedParameterCoordinator
    absent = library.ZeroParamStatus.NOT_AVAILABLE
    names = ("fetch_sub_module", GATHER, "_invalidate_trace")
    originals = fetch, gather, invalidate = [getattr(coordinator, name) for name in names]

    def num_absent(parameters: Any) -> int:
        return sum(parameter.ds_status == absent for parameter in set(parameters))

    def count_fetch(self: Any, module: Any, *args: Any, **kwargs: Any) -> None:
        found["late"] += num_absent(library.iter_params(module))
        fetch(self, module, *args, **kwargs)

    def count_gather(self: Any, parameters: Any, *args: Any, **kwargs: Any) -> None:
        found["gathered"] += num_absent(parameters)
        gather(self, parameters, *args, **kwargs)

    def count_invalidated(self: Any) -> None:
        found["invalidated"] += 1
        invalidate(self)

    counters = (count_fetch, count_gather, count_invalidated)
    for name, counter in zip(names, counters, strict=True):
        setattr(coordinator, name, counter)
    try:
        yield
    finally:
        for name, original in zip(names, originals, strict=True):
            setattr(coordinator, name, original)


def train(case: str, data: AnyPath, folder: Path) -> dict[str, int]:
    """Train for two cycles, and return what was counted in the second, and thrown away in both.

    The first one shows DeepSpeed every order.
    """
    with small_limits():
        worker = worker_of(case, data, folder)
    first, second = (Counter(late=0, gathered=0, invalidated=0) for _ in range(2))
    for cycle, found in enumerate((first, second)):
        with counting(found):
            worker.loop.cycle(cycle)
    return dict(second) | {"invalidated": first["invalidated"] + second["invalidated"]}


def main() -> None:
    """Write as JSON what was counted for all cases, or for those that are named."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}
    out, *cases = sys.argv[1:]
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        meeting = f"file://{folder}/meeting"
        dist.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
        latents, pixels = write_cache(folder / "latents", LATENTS), write_pixels(folder)
        for case in cases or CASES:
            found[case] = train(case, pixels if case == "vae" else latents, folder)
        dist.destroy_process_group()
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
