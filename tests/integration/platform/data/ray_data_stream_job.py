"""A driver for test_ray_data_stream.py: what a stream hands out, its makers killed or not."""

import os
import pickle
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from magicdistill.platform.cluster.ray_cluster import ray_cluster
from magicdistill.platform.config.sections import ClusterConfig
from magicdistill.platform.data.ray_data_stream import ProducerConfig, make_items
from magicdistill.platform.data.stream_source import open_batches
from tests.tiny_run import tiny_recipe, write_cache

ITEM_BYTES = 1 << 20


def build() -> Callable[[int], tuple[int, int, bytes]]:
    """Return a maker that tells its process, of items so large that Ray holds it back."""

    def make(index: int) -> tuple[int, int, bytes]:
        time.sleep(0.05)
        return index, os.getpid(), bytes(ITEM_BYTES)

    return make


def none_is_lost_where_makers_are_killed() -> bool:
    """Kill two processes that make items; each item still comes once and in order."""
    seen: list[tuple[int, int]] = []
    killed: set[int] = set()
    producers = ProducerConfig(build, num_actors=2, buffer=2, item_bytes=ITEM_BYTES)
    for index, item in make_items(producers, 5, 45):
        made, pid, _ = pickle.loads(item)
        seen.append((index, made))
        if index >= 15 + 10 * len(killed) and len(killed) < 2 and pid not in killed:
            with suppress(ProcessLookupError):  # Ray may have ended it since it made the item
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
    print("killed", killed, "seen", seen)
    return seen == [(i, i) for i in range(5, 45)] and len(killed) == 2


def readers_read_what_a_worker_reads(folder: Path) -> bool:
    """Compare micro-batches through Ray Data, from the third window on, with direct ones."""
    recipe = tiny_recipe(4)
    data = recipe.data.model_copy(update={"num_readers": 1})
    streamed, direct = (
        open_batches(r, write_cache(folder), num_steps=6, rank=0, world_size=1, device="cpu")
        for r in (recipe.model_copy(update={"data": data}), recipe)
    )
    pairs = [(streamed(step, 0), direct(step, 0)) for step in (2, 3, 3, 4, 5)]
    assert streamed.throughput()["supply/made_per_second"] > 0  # type: ignore[attr-defined]
    return all(torch.equal(a.x0, b.x0) and a.positions == b.positions for a, b in pairs)


def main() -> None:
    """Run one of the two on a cluster and print the verdict."""
    with ray_cluster(ClusterConfig(dashboard=False)), tempfile.TemporaryDirectory() as folder:
        if sys.argv[1] == "none lost":
            print("none lost:", none_is_lost_where_makers_are_killed())
        else:
            print("read alike:", readers_read_what_a_worker_reads(Path(folder)))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
