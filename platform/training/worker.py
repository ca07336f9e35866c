"""What each worker of a training does."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.io.whole_files import write_text
from magicdistill.models.networks.attention import set_kernels
from magicdistill.models.networks.placement import WHOLE, Placement
from magicdistill.models.networks.sequence_parallel import join_sequence_group
from magicdistill.models.objectives.types import Method
from magicdistill.platform.checkpoints.checkpoint_folder import checkpoint_name, cycle_of
from magicdistill.platform.checkpoints.checkpoints import GENERATOR, Checkpoints
from magicdistill.platform.cluster import ranks
from magicdistill.platform.cluster.preemption import LeavingError, Notices
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.data.stream_source import open_batches
from magicdistill.platform.engines.ema import Ema, averaged
from magicdistill.platform.engines.engine import Engine, build_engine
from magicdistill.platform.engines.zero3 import placement, share_gathers
from magicdistill.platform.runs import logs
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.training.callbacks import (
    Callback,
    Checkpointer,
    HealthCheck,
    ProducerThroughput,
    ValidationSamples,
    of_rank,
)
from magicdistill.platform.training.finite_weights import demand_finite
from magicdistill.platform.training.health import HealthMonitor, UnhealthyError
from magicdistill.platform.training.loop import Loop, num_steps
from magicdistill.platform.training.metrics_writer import MetricsWriter
from magicdistill.platform.training.stragglers import Stragglers
from magicdistill.platform.training.validation import Validation, num_scored


class Worker:
    """One rank: its method, engines, batches and callbacks.

    Where an actor scores the checkpoints beside the training (`is_scored_apart`), ranks score none.
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
        self.recipe = recipe = run.recipe()
        share = _Share(rank, world_size, device)
        _set_up_process(recipe)
        self.placement = placement(recipe.engine)
        self.method = _build_method(recipe, self.placement)
        self.engines = _build_engines(recipe, self.method, device)
        self.ema = _build_ema(recipe, self.engines)
        self.checkpoints = Checkpoints.of(run)
        failed = self.checkpoints.has_failed
        self.notices = Notices(run.stop_path, is_draining, device, failed)
        self.monitor = HealthMonitor(recipe.health)
        self.loop = self._build_loop(data, share)
        scored = 0 if is_scored_apart else num_scored(recipe)
        shown = held_out if recipe.schedule.sample_every else None
        self.validation = _build_validation(recipe, shown, share, scored) if shown else None
        self.health = HealthCheck(run, recipe.health, self.monitor, is_scored_apart=is_scored_apart)
        self.checkpointer = self._build_checkpointer()
        self.callbacks = callbacks_of(self)

    def _build_loop(self, data: AnyPath, share: "_Share") -> Loop:
        schedule = self.recipe.schedule
        batches = open_batches(
            self.recipe,
            data,
            num_steps=num_steps(self.method, schedule.num_cycles),
            rank=share.rank,
            world_size=share.world_size,
            device=share.device,
        )
        return Loop(
            self.method,
            self.engines,
            batches,
            seed=self.recipe.seed,
            num_micro_batches=schedule.num_micro_batches,
            ema=self.ema,
            device=share.device,
        )

    def _build_checkpointer(self) -> Checkpointer:
        return Checkpointer(
            self.run,
            self.recipe.schedule,
            self.checkpoints,
            self.engines,
            self.ema,
            self.notices,
            self.monitor,
        )

    def run_all(self) -> None:
        """Train from the last checkpoint to the end, then export the weights.

        A run that is stopped for its health leaves a health report instead. Raises PreemptedError
        where Ray should start the group again.
        """
        self._measure_teacher()
        has_saved = ranks.of_first(self._has_saved())
        start = self.checkpoints.load_latest(self.engines, self.ema, has_saved=has_saved)
        if self.rank == 0:
            self.run.rewind_metrics(start)
            if start:
                self.run.say(f"continuing after cycle {start}")
        self._replay_health(start)
        try:
            if start:
                demand_finite(f"unhealthy at cycle {start}", self.engines, self.ema)
            self.loop.run(start, self.recipe.schedule.num_cycles, self.callbacks)
            self._export()
        except UnhealthyError as error:  # all ranks raise it together
            self.checkpoints.wait()
            if self.rank == 0:
                report = f"{self.health.with_best(str(error))}{self._ways_on()}"
                write_text(self.run.health_report_path, report)
        except LeavingError:
            return

    def _has_saved(self) -> bool:
        """Tell whether the run has come so far that it had a checkpoint."""
        last = max((row["step"] for row in self.run.metrics()), default=0)
        return last >= self.recipe.schedule.checkpoint_every

    def _ways_on(self) -> str:
        """Say from which checkpoints an unhealthy run can go on."""
        cycles = [cycle_of(path) for path in self.checkpoints.committed()]
        if not cycles:
            return ""
        words = f"; --resume {self.run.path} goes on from cycle {cycles[-1]}"
        others = ", ".join(str(cycle) for cycle in cycles[:-1])
        return words + (f", --resume {self.run.path}@CYCLE from {others}" if others else "")

    def _measure_teacher(self) -> None:
        """Let the generator show what health is: before it is trained it is the teacher."""
        if self.validation is not None and self.recipe.schedule.sample_every:
            has_teacher = self.recipe.model.teacher is not None
            generator = self.engines[GENERATOR].module if has_teacher else None
            self.validation.measure_teacher(generator)

    def _replay_health(self, start: int) -> None:
        """Let the health monitor see again what a resumed run has recorded."""
        kept, rows = self.checkpoints.names(), ranks.of_first(list(self.run.metrics()))
        for row in rows:
            if (cycle := row["step"]) <= start:
                self.monitor.observe(cycle, row)
                if checkpoint_name(cycle) in kept and self.monitor.keeps(cycle) and self.rank == 0:
                    self.run.mark_best(cycle)

    def _export(self) -> None:
        """Write the trained network; raises UnhealthyError where its files cannot hold it."""
        role, engine = next(iter(self.engines.items()))
        demand_finite(
            f"no {self.run.path.name}/model is written (jobs/export.py --dtype bf16 may write it)",
            {} if self.ema else {role: engine},
            self.ema,
            torch.float16,
        )
        with averaged(self.ema):
            if self.rank == 0 or self.placement is not WHOLE:
                self.method.save(self.run.path / "model", self.placement)


class _Share(NamedTuple):
    """Which rank this is, of how many, and where it computes."""

    rank: int
    world_size: int
    device: torch.device | str


def callbacks_of(worker: Worker) -> list[Callback]:
    """Return what a rank does after each cycle, in this order; see `callbacks.py` for why."""
    schedule = worker.recipe.schedule
    return of_rank(
        worker.rank,
        [
            ValidationSamples(
                worker.run,
                schedule,
                worker.method,
                worker.validation,
                worker.engines,
                worker.ema,
                worker.device,
            ),
            ProducerThroughput(worker.loop),
            stragglers := Stragglers(schedule, worker.loop.step_timer),
            MetricsWriter(worker.run, schedule, stragglers),
            worker.health,
            worker.checkpointer,
        ],
    )


def _set_up_process(recipe: Recipe) -> None:
    """Set what holds for the whole process of a worker: its output, its threads, its seed."""
    logs.configure(verbose=logs.is_verbose())
    torch.set_num_threads(recipe.cluster.threads_per_worker)
    torch.manual_seed(recipe.seed)


def _build_method(recipe: Recipe, placement: Placement) -> Method:
    """Return the method with its networks, which share sequences out over their group."""
    method = recipe.method.build(recipe.model, placement)
    sequence = join_sequence_group(recipe.cluster.sequence_parallel)
    for module in method.modules.values():
        set_kernels(module, recipe.kernels, sequence)
    return method


def _build_engines(recipe: Recipe, method: Method, device: torch.device | str) -> dict[str, Engine]:
    """Return an engine for each role, in the method's order."""
    schedule = recipe.schedule
    updates = method.updates(schedule.num_cycles)
    if placement(recipe.engine) is not WHOLE:
        share_gathers(method.modules.values())
    return {
        role: build_engine(
            recipe.engine,
            module.to(device),
            schedule.optimizers[role].over(schedule.num_cycles * updates.count(role)),
            num_micro_batches=schedule.num_micro_batches,
            groups=method.parameter_groups(role),
        )
        for role, module in method.modules.items()
    }


def _build_ema(recipe: Recipe, engines: Mapping[str, Engine]) -> Ema | None:
    """Return the average of the first role's weights, which is the one that is exported."""
    role, schedule = next(iter(engines)), recipe.schedule
    if schedule.ema_decay is None:
        return None
    return Ema(role, engines[role], schedule.ema_decay, schedule.ema_start)


def _build_validation(
    recipe: Recipe, held_out: AnyPath, share: _Share, num_scored: int
) -> Validation:
    return Validation(
        recipe,
        held_out,
        rank=share.rank,
        world_size=share.world_size,
        device=share.device,
        num_scored=num_scored,
    )
