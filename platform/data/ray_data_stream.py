"""Stream items by index: Ray Data's actors make them ahead of need, and ranks take them in order.

Ray Data starts, feeds, restarts and throttles the actors. Which rank gets which item is a function
of its index: `streaming_split` would give it to whoever asks first.
"""

import pickle
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from magicdistill.platform.cluster import ranks

HEAD = "node:__internal_head__"
"""The resource by which Ray marks the head node."""
MAX_WAITING = 1000
"""Number of requests that can wait in a buffer at the same time."""

Producer = Callable[[int], Any]


@dataclass(frozen=True)
class ProducerConfig:
    """The actors that make items, and how far they run ahead of the consumers."""

    build: Callable[[], Producer]
    """Called once in each actor; the function that it returns makes the item of any index."""
    num_actors: int = 1
    gpus_per_actor: float = 0.0
    buffer: int = 8
    """Items that wait to be taken; up to as many again are in Ray's object store."""
    item_bytes: int = 1 << 20
    """Approximate size of an item in bytes, by which Ray Data throttles the actors."""


@dataclass(frozen=True)
class Throughput:
    """How a stream is doing."""

    num_made: int
    num_taken: int
    seconds: float
    """Seconds since the first item was made."""

    @property
    def num_waiting(self) -> int:
        """Items that wait in the buffer, without those that are still in Ray's object store."""
        return self.num_made - self.num_taken


class _Make:
    def __init__(self, build: Callable[[], Producer], first: int) -> None:
        self._make, self._first = build(), first

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        (offset,) = batch["id"]
        item = pickle.dumps(self._make(self._first + int(offset)), protocol=5)
        return {"index": [self._first + int(offset)], "item": np.array([item], dtype=object)}


def make_items(producers: ProducerConfig, first: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """Yield the pickled items `first` .. `stop` - 1 in order, as Ray Data's actors make them."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # each item is a block: it goes on its way at once
    options = context.execution_options
    options.preserve_order = True
    room = max(1, producers.buffer) * producers.item_bytes
    options.resource_limits = options.resource_limits.copy(object_store_memory=float(room))
    # one read of all numbers, cut up on the way: planning a read for each takes milliseconds apiece
    indices = ray.data.range(stop - first, override_num_blocks=1)
    dataset = indices.repartition(target_num_rows_per_block=1).map_batches(
        _Make,
        fn_constructor_args=(producers.build, first),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(producers.num_actors, stop - first)),
        num_cpus=1,
        num_gpus=producers.gpus_per_actor or None,
    )
    for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
        yield from zip(batch["index"].tolist(), batch["item"], strict=True)


@ray.remote(num_cpus=0)
class Buffer:
    """An actor that keeps each item until all of its consumers have taken it."""

    def __init__(
        self, producers: ProducerConfig, first: int, stop: int, num_consumers: int
    ) -> None:
        self._buffer, self._num_consumers = producers.buffer, num_consumers
        self._kept: dict[int, list[bytes]] = {}
        self._num_made = self._num_taken = 0
        self._start_s = 0.0
        self._error: Exception | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._pull, args=(producers, first, stop), daemon=True).start()

    def take(self, index: int) -> bytes:
        """Return an item, waiting for it; raises the error of its producer."""
        with self._changed:
            self._changed.wait_for(lambda: index in self._kept or self._error)
            if index not in self._kept:
                assert self._error is not None
                raise self._error
            copies = self._kept[index]
            item = copies.pop()
            if not copies:
                del self._kept[index]
                self._num_taken += 1
                self._changed.notify_all()
            return item

    def throughput(self) -> Throughput:
        """Return how the stream is doing."""
        return Throughput(self._num_made, self._num_taken, time.monotonic() - self._start_s)

    def _pull(self, producers: ProducerConfig, first: int, stop: int) -> None:
        try:
            for index, item in make_items(producers, first, stop):
                with self._changed:
                    self._start_s = self._start_s or time.monotonic()
                    self._kept[index] = [item] * self._num_consumers
                    self._num_made += 1
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: len(self._kept) < self._buffer)
        except Exception as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()


class Stream:
    """A rank's access to the buffer that all ranks share; all ranks open it together."""

    def __init__(
        self, producers: ProducerConfig, first: int, stop: int, num_consumers: int
    ) -> None:
        name = ranks.of_first(f"buffer-{uuid.uuid4().hex}")
        arguments = (producers, first, stop, num_consumers)
        own, node = None, home(ranks.of_all(ray.get_runtime_context().get_node_id()))
        if ranks.rank() == 0:
            options = {
                "name": name,
                "max_concurrency": MAX_WAITING,
                "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
            }
            own = Buffer.options(**options).remote(*arguments)
        ranks.barrier()
        self._dealer: Any = own or ray.get_actor(name)  # it ends with rank 0's handle
        self._asked: dict[int, ray.ObjectRef] = {}

    def ask(self, index: int) -> None:
        """Ask for an item ahead of need."""
        self._asked[index] = self._dealer.take.remote(index)

    def take(self, index: int) -> Any:
        """Return an item, waiting if it is not made yet."""
        if index not in self._asked:
            self.ask(index)
        return pickle.loads(ray.get(self._asked.pop(index)))

    def throughput(self) -> Throughput:
        """Return how the stream is doing."""
        return ray.get(self._dealer.throughput.remote())


def home(nodes: Sequence[str]) -> str:
    """Return the id of the node for a buffer, of those of the ranks: not the head, if there is any.

    All samples pass through it, and everything depends on the head.
    """
    is_head = {node["NodeID"]: HEAD in node["Resources"] for node in ray.nodes()}
    return next((node for node in nodes if not is_head[node]), nodes[0])
