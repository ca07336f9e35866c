"""What each worker of a training does."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.models.metrics.columns.registry import METRICS
from magicdistill.models.networks.attention import set_kernels
from magicdistill.models.networks.placement import WHOLE
from magicdistill.models.networks.sequence_parallel import join_sequence_group
from magicdistill.models.profiling import span
from magicdistill.platform.checkpoints.checkpoints import GENERATOR, Checkpoints, checkpoint_name
from magicdistill.platform.cluster import ranks
from magicdistill.platform.cluster.preemption import LeavingError, Notice, Notices, PreemptedError
from magicdistill.platform.data.stream_source import StreamedBatches, open_batches
from magicdistill.platform.runs import logs
from magicdistill.platform.runs.run_directory import RunDirectory, write_text
from magicdistill.platform.training.engine import Ema, build_engine
from magicdistill.platform.training.health import HealthMonitor, UnhealthyError
from magicdistill.platform.training.loop import (
    Callback,
    Loop,
    Metrics,
    mean_over_ranks,
    num_steps,
)
from magicdistill.platform.training.metrics_writer import Recorder
from magicdistill.platform.training.validation import Validation, num_scored
from magicdistill.platform.training.zero3 import placement


class Worker:
    """One rank: its method, engines, batches and callbacks.

    Where the checkpoints are examined, beside the training, the ranks score nothing.
    """

    def __init__(
        self,
        run: RunDirectory,
        data: AnyPath,
        held_out: AnyPath | None,
        *,
        rank: int,
        world_size: int,
        device: torch.device | str = "cpu",
        is_draining: Callable[[], bool] = lambda: False,
        is_scored_apart: bool = False,
    ) -> None:
        self.run, self.rank, self.device = run, rank, device
        self.is_scored_apart = is_scored_apart
        self.recipe = recipe = run.recipe()
        logs.configure(verbose=logs.is_verbose())
        torch.set_num_threads(recipe.cluster.threads_per_worker)
        torch.manual_seed(recipe.seed)
        schedule = recipe.schedule
        self.placement = placement(recipe.engine)
        self.method = recipe.method.build(recipe.model, self.placement)
        sequence = join_sequence_group(recipe.cluster.sequence_parallel)
        for module in self.method.modules.values():
            set_kernels(module, recipe.kernels, sequence)
        self.engines = {
            role: build_engine(
                recipe.engine,
                module.to(device),
                schedule.optimizers[role],
                num_micro_batches=schedule.num_micro_batches,
            )
            for role, module in self.method.modules.items()
        }
        role, decay = next(iter(self.engines)), schedule.ema_decay
        self.ema = Ema(role, self.engines[role].module, decay) if decay else None
        self.checkpoints = Checkpoints.of(run)
        self.notices = Notices(run.stop_path, is_draining, device)
        self.monitor = HealthMonitor(recipe.health)
        self.loop = Loop(
            self.method,
            self.engines,
            open_batches(
                recipe,
                data,
                num_steps=num_steps(self.method, schedule.num_cycles),
                rank=rank,
                world_size=world_size,
                device=device,
            ),
            seed=recipe.seed,
            num_micro_batches=schedule.num_micro_batches,
            ema=self.ema,
            device=device,
        )
        self.validation = (
            Validation(
                recipe,
                held_out,
                rank=rank,
                world_size=world_size,
                device=device,
                num_scored=0 if is_scored_apart else num_scored(recipe),
            )
            if held_out
            else None
        )

    def run_all(self) -> None:
        """Train from the last checkpoint to the end, then export the weights.

        A run that is stopped for its health leaves its verdict instead. Raises PreemptedError
        where Ray should start the group again.
        """
        schedule = self.recipe.schedule
        self._measure_teacher()
        start = self.checkpoints.load_latest(self.engines, self.ema)
        if self.rank == 0:
            self.run.rewind_metrics(start)
            if start:
                self.run.say(f"continuing after cycle {start}")
        self._recall(start)
        try:
            self.loop.run(start, schedule.num_cycles, self._callbacks())
        except UnhealthyError as error:  # all ranks raise it together
            if self.rank == 0:
                write_text(self.run.health_report_path, self._with_best(str(error)))
            return
        except LeavingError:
            return
        self._export()

    def _callbacks(self) -> list[Callback]:
        callbacks: list[Callback] = [self._sample, self._judge, self._checkpoint]
        if self.rank == 0:
            recorder = Recorder(self.run, self.recipe.schedule, self.loop.step_timer)
            callbacks[1:1] = [self._measure_supply, recorder]
        return callbacks

    def _measure_supply(self, cycle: int, metrics: Metrics) -> None:
        if isinstance(self.loop.batches, StreamedBatches):
            metrics.update(self.loop.batches.throughput())

    def _measure_teacher(self) -> None:
        """Let the generator show what health is: before it is trained it is the teacher."""
        if self.validation is not None and self.recipe.schedule.sample_every:
            has_teacher = self.recipe.model.teacher is not None
            generator = self.engines[GENERATOR].module if has_teacher else None
            self.validation.measure_teacher(generator)

    def _recall(self, start: int) -> None:
        """Let the watch see again what a resumed run has recorded."""
        kept, rows = ranks.of_first((self.checkpoints.names(), list(self.run.metrics())))
        for row in rows:
            if (cycle := row["step"]) <= start:
                self.monitor.observe(cycle, row)
                if checkpoint_name(cycle) in kept and self.monitor.keeps(cycle) and self.rank == 0:
                    self.run.mark_best(cycle)

    def _judge(self, cycle: int, metrics: Metrics) -> None:
        """Stop an ill run before it saves a checkpoint, or say that it is ill."""
        health = self.recipe.health
        violation = self.monitor.observe(cycle, metrics)
        if violation is None:
            return
        if health.action == "stop":
            raise UnhealthyError(str(violation))
        if self.rank == 0:
            self.run.say(self._with_best(str(violation)))

    def _with_best(self, words: str) -> str:
        """Add which checkpoint is the best, unless that is told beside the training."""
        is_told = self.is_scored_apart and self.recipe.health.best_by in METRICS.names()
        return words if is_told else f"{words}; {self.monitor.best}"

    @span("checkpoints")
    def _checkpoint(self, cycle: int, metrics: Metrics) -> None:
        schedule, notice = self.recipe.schedule, self.notices.read()
        is_due = cycle % schedule.checkpoint_every == 0 or cycle == schedule.num_cycles
        if is_due or notice:
            self._save(cycle)
        if notice and self.rank == 0:
            self.run.say(f"saved cycle {cycle}, asked to {notice.name.lower()}")
        if notice is Notice.LEAVE:
            raise LeavingError
        if notice is Notice.RESTART:
            raise PreemptedError(f"a worker received SIGTERM; cycle {cycle} is saved")

    def _save(self, cycle: int) -> None:
        is_best = self.monitor.keeps(cycle)

        def spared() -> set[int]:
            scored_now = self.run.scored_now()  # first: at its end it may be the best
            wanted = (scored_now, cycle if is_best else self.run.best())
            return {number for number in wanted if number is not None}

        self.checkpoints.save(cycle, self.engines, self.ema, spared)
        if is_best and self.rank == 0:
            self.run.mark_best(cycle)

    @span("samples")
    def _sample(self, cycle: int, metrics: Metrics) -> None:
        """Write pictures and add scores to the cycle's metrics; the recorder comes next."""
        every = self.recipe.schedule.sample_every
        if self.validation is None or not every or cycle % every:
            return
        with self._averaged():
            generator = self.engines[GENERATOR].module
            latents = self.validation.generate(generator)
            found = self.validation.scores(generator)
        modules = {role: engine.module for role, engine in self.engines.items()}
        found |= self.validation.method_terms(self.method, modules, latents)
        pixels = self.validation.decode(latents)
        found |= self.validation.health(pixels)
        # the ranks judge alike where their numbers are the same to the last bit
        values = {name: torch.tensor(value) for name, value in found.items()}
        metrics.update(mean_over_ranks(values, self.device))
        if self.rank == 0:
            self.validation.write(pixels, self.run.samples / f"cycle-{cycle:07d}.png")

    def _averaged(self) -> AbstractContextManager[None]:
        return self.ema.swapped() if self.ema else nullcontext()

    def _export(self) -> None:
        """Write the trained network."""
        with self._averaged():
            if self.rank == 0 or self.placement is not WHOLE:
                self.method.save(self.run.path / "model", self.placement)
