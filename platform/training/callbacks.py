"""What runs after every cycle of a training, one small class each.

The order of `callbacks_of` in `worker.py` matters. Samples add their scores to the cycle's metrics
before these are written and judged, and health is judged before the weights of an unhealthy run
could replace those of a good checkpoint.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch

from magicdistill.models.metrics.columns.registry import METRICS
from magicdistill.models.objectives.types import Method
from magicdistill.models.profiling import span
from magicdistill.platform.checkpoints.checkpoints import GENERATOR, Checkpoints
from magicdistill.platform.cluster import ranks
from magicdistill.platform.cluster.preemption import LeavingError, Notice, Notices, PreemptedError
from magicdistill.platform.config.sections import HealthConfig, ScheduleConfig
from magicdistill.platform.data.stream_source import StreamedBatches
from magicdistill.platform.engines.ema import Ema, averaged
from magicdistill.platform.engines.engine import Engine
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.training.finite_weights import demand_finite
from magicdistill.platform.training.health import HealthMonitor, UnhealthyError
from magicdistill.platform.training.loop import Loop, Metrics, mean_over_ranks
from magicdistill.platform.training.validation import Validation


class Callback(ABC):
    """Is called on every rank after each cycle, in the order of the list that holds it."""

    first_rank_only: ClassVar[bool] = False
    """Whether the other ranks leave it out; one that all ranks share must not set it."""

    @abstractmethod
    def __call__(self, cycle: int, metrics: Metrics) -> None:
        """Act on the number of finished cycles and the cycle's mean metrics, which it may extend.

        Raises an error, on all ranks alike, to end the training.
        """


def of_rank(rank: int, callbacks: Iterable[Callback]) -> list[Callback]:
    """Return those that a rank calls, in their order."""
    return [one for one in callbacks if rank == 0 or not one.first_rank_only]


class ValidationSamples(Callback):
    """Draws the fixed held-out clips every `sample_every` cycles: pictures, scores and health."""

    def __init__(
        self,
        run: RunDirectory,
        schedule: ScheduleConfig,
        method: Method,
        validation: Validation | None,
        engines: Mapping[str, Engine],
        ema: Ema | None,
        device: torch.device | str,
    ) -> None:
        self.run, self.method, self.validation = run, method, validation
        self.engines, self.ema, self.device = engines, ema, device
        self.every = schedule.sample_every

    @span("samples")
    def __call__(self, cycle: int, metrics: Metrics) -> None:
        """Add scores to the metrics, and write pictures on the first rank."""
        if self.validation is None or not self.every or cycle % self.every:
            return
        with averaged(self.ema):
            generator = self.engines[GENERATOR].module
            latents = self.validation.generate(generator)
            found = self.validation.scores(generator)
        modules = {role: engine.module for role, engine in self.engines.items()}
        found |= self.validation.method_terms(self.method, modules, latents)
        shown = self.validation.look(latents)
        found |= self.validation.health(shown)
        # The ranks judge health each by itself, and must come to one result: their numbers have to
        # be the same to the last bit.
        values = {name: torch.tensor(value) for name, value in found.items()}
        metrics.update(mean_over_ranks(values, self.device))
        if ranks.rank() == 0:
            self.validation.write(shown, self.run.samples / f"cycle-{cycle:07d}.png")


class ProducerThroughput(Callback):
    """Adds how fast the producers of a streamed training deliver, as the first rank sees it."""

    first_rank_only = True

    def __init__(self, loop: Loop) -> None:
        self.loop = loop

    def __call__(self, cycle: int, metrics: Metrics) -> None:
        """Add the numbers, where the batches come from a stream."""
        if isinstance(batches := self.loop.batches, StreamedBatches):
            metrics.update(batches.throughput())


class HealthCheck(Callback):
    """Ends an unhealthy run before it saves a checkpoint, or says that it is unhealthy.

    `is_scored_apart`: checkpoints are scored by an actor beside the training, which knows the best.
    """

    def __init__(
        self,
        run: RunDirectory,
        config: HealthConfig,
        monitor: HealthMonitor,
        *,
        is_scored_apart: bool,
    ) -> None:
        self.run, self.config, self.monitor = run, config, monitor
        self.is_scored_apart = is_scored_apart

    def __call__(self, cycle: int, metrics: Metrics) -> None:
        """Judge a cycle's metrics; raises UnhealthyError where the recipe stops such a run."""
        violation = self.monitor.observe(cycle, metrics)
        if violation is None:
            return
        if self.config.action == "stop":
            raise UnhealthyError(str(violation))
        if ranks.rank() == 0:
            self.run.say(self.with_best(str(violation)))

    def with_best(self, words: str) -> str:
        """Add which checkpoint is the best, except where the actor says so."""
        actor_says_so = self.is_scored_apart and self.config.best_by in METRICS.names()
        return words if actor_says_so else f"{words}; {self.monitor.best}"


class Checkpointer(Callback):
    """Saves checkpoints when they are due, and when the workers are asked to leave.

    A due one is written while the training goes on; one that may be the last is waited for.
    """

    def __init__(
        self,
        run: RunDirectory,
        schedule: ScheduleConfig,
        checkpoints: Checkpoints,
        engines: Mapping[str, Engine],
        ema: Ema | None,
        notices: Notices,
        monitor: HealthMonitor,
    ) -> None:
        self.run, self.schedule, self.checkpoints = run, schedule, checkpoints
        self.engines, self.ema = engines, ema
        self.notices, self.monitor = notices, monitor

    @span("checkpoints")
    def __call__(self, cycle: int, metrics: Metrics) -> None:
        """Save; raises LeavingError or PreemptedError where that is what the workers are asked.

        Raises, on all ranks, what went wrong with the checkpoint that was being written.
        """
        schedule, notice = self.schedule, self.notices.read()
        if notice is Notice.FAIL:
            self.checkpoints.wait()
        is_last = cycle == schedule.num_cycles
        if is_last or notice or cycle % schedule.checkpoint_every == 0:
            self.save(cycle, beside=not (is_last or notice))
        if notice and ranks.rank() == 0:
            self.run.say(f"saved cycle {cycle}, asked to {notice.name.lower()}")
        if notice is Notice.LEAVE:
            raise LeavingError
        if notice is Notice.RESTART:
            raise PreemptedError(f"a worker received SIGTERM; cycle {cycle} is saved")

    def save(self, cycle: int, *, beside: bool = False) -> None:
        """Save the state after a cycle, and mark it where it is the best so far; see `Checkpoints`.

        Raises UnhealthyError, and saves nothing, where its weights are no finite numbers.
        """
        demand_finite(f"unhealthy at cycle {cycle}", self.engines, self.ema)
        is_best = self.monitor.keeps(cycle)

        def spared() -> set[int]:
            if is_best:
                self.run.mark_best(cycle)
            # Read which checkpoint is being scored before which is the best: at the end of the
            # scoring the one becomes the other, and in this order it is seen as one of them.
            scored_now = self.run.scored_now()
            wanted = (scored_now, self.run.best())
            return {number for number in wanted if number is not None}

        self.checkpoints.save(cycle, self.engines, self.ema, spared, beside=beside)
