"""Training under Ray Train: what each worker does, and how the group is started."""

import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from magicdistill.models.networks.attention import set_kernels
from magicdistill.models.networks.placement import WHOLE
from magicdistill.models.networks.sequence_parallel import join_sequence_group
from magicdistill.models.networks.transformer import VelocityModel
from magicdistill.models.networks.weights import save_transformer
from magicdistill.models.objectives.build import build_method
from magicdistill.models.objectives.vae import VaeTraining
from magicdistill.platform import logs
from magicdistill.platform.batches import open_batches
from magicdistill.platform.checkpoints import Checkpoints
from magicdistill.platform.config import ScheduleConfig
from magicdistill.platform.engine import Ema, build_engine, gathered
from magicdistill.platform.loop import Callback, Loop, Metrics
from magicdistill.platform.run_directory import RunDirectory
from magicdistill.platform.validation import Validation
from magicdistill.platform.weights import placement

GENERATOR = "generator"


def fit(run: RunDirectory, data: Path, held_out: Path | None) -> None:
    """Train the run's recipe on a group of Ray Train workers.

    `data` is a latent cache, or a folder of pixel windows where a VAE is trained; `held_out`
    gives the fixed validation samples. A lost worker restarts the group from the last
    checkpoint. Raises ray.train.TrainingFailedError with the cause where that does not help.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    cluster = run.recipe().cluster
    on_gpu = cluster.gpus_per_worker > 0
    resources = {"CPU": 1.0} | ({"GPU": cluster.gpus_per_worker} if on_gpu else {})
    TorchTrainer(
        train_worker,
        train_loop_config={
            "run": str(run.path),
            "data": str(data),
            "held_out": held_out and str(held_out),
        },
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=cluster.num_workers, use_gpu=on_gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(run.path),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
        ),
    ).fit()


def train_worker(config: dict[str, Any]) -> None:
    """Run one worker of the group."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    Worker(
        RunDirectory(Path(config["run"])),
        Path(config["data"]),
        config["held_out"] and Path(config["held_out"]),
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=ray.train.torch.get_device(),
    ).run_all()


class Worker:
    """One rank: its method, engines, batches and callbacks."""

    def __init__(
        self,
        run: RunDirectory,
        data: Path,
        held_out: Path | None,
        *,
        rank: int,
        world_size: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.run, self.rank, self.device = run, rank, device
        self.recipe = recipe = run.recipe()
        logs.configure(verbose=logs.is_verbose())
        torch.set_num_threads(recipe.cluster.threads_per_worker)
        torch.manual_seed(recipe.seed)
        schedule = recipe.schedule
        self.placement = placement(recipe.engine)
        self.method = build_method(recipe.method, recipe.model, self.placement)
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
        self.checkpoints = Checkpoints(run.checkpoints, schedule.keep_checkpoints, run.say)
        self.loop = Loop(
            self.method,
            self.engines,
            open_batches(recipe, data, rank=rank, world_size=world_size, device=device),
            seed=recipe.seed,
            num_micro_batches=schedule.num_micro_batches,
            ema=self.ema,
            device=device,
        )
        self.validation = (
            Validation(recipe, held_out, rank=rank, world_size=world_size, device=device)
            if held_out
            else None
        )

    def run_all(self) -> None:
        """Train from the last checkpoint to the end, then export the weights."""
        schedule = self.recipe.schedule
        start = self.checkpoints.load_latest(self.engines, self.ema)
        if self.rank == 0:
            self.run.rewind_metrics(start)
            if start:
                self.run.say(f"continuing after cycle {start}")
        self.loop.run(start, schedule.num_cycles, self._callbacks())
        self._export()

    def _callbacks(self) -> list[Callback]:
        recorder = [Recorder(self.run, self.recipe.schedule)] if self.rank == 0 else []
        return [self._sample, *recorder, self._checkpoint]

    def _checkpoint(self, cycle: int, metrics: Metrics) -> None:
        schedule = self.recipe.schedule
        if cycle % schedule.checkpoint_every == 0 or cycle == schedule.num_cycles:
            self.checkpoints.save(cycle, self.engines, self.ema)

    def _sample(self, cycle: int, metrics: Metrics) -> None:
        """Write pictures and add scores to the cycle's metrics; the recorder comes next."""
        every = self.recipe.schedule.sample_every
        if self.validation is None or not every or cycle % every:
            return
        with self._averaged():
            generator = self.engines[GENERATOR].module
            latents = self.validation.generate(generator)
            metrics.update(self.validation.scores(generator))
        modules = {role: engine.module for role, engine in self.engines.items()}
        metrics.update(self.validation.score_gap(modules, latents))
        if self.rank == 0:
            self.validation.write(latents, self.run.samples / f"cycle-{cycle:07d}.png")

    def _averaged(self) -> AbstractContextManager[None]:
        return self.ema.swapped() if self.ema else nullcontext()

    def _export(self) -> None:
        """Write the trained network: the VAE, or the generator as a diffusers folder."""
        directory = self.run.path / "model"
        with self._averaged():
            if isinstance(self.method, VaeTraining):
                with gathered(self.method.vae):
                    if self.rank == 0:
                        self.method.vae.save(directory)
            elif self.rank == 0 or self.placement is not WHOLE:
                generator = self.method.modules[GENERATOR]
                assert isinstance(generator, VelocityModel)
                save_transformer(generator.transformer, directory, placement=self.placement)


class Recorder:
    """Writes metrics of every cycle, and now and then a line for people."""

    def __init__(self, run: RunDirectory, schedule: ScheduleConfig) -> None:
        self.run, self.schedule = run, schedule
        self.line_every = max(1, schedule.num_cycles // 20)
        self.first: tuple[int, float] | None = None
        self.last_s = time.monotonic()

    def __call__(self, cycle: int, metrics: Metrics) -> None:
        """Record a finished cycle."""
        now_s = time.monotonic()
        seconds, self.last_s = now_s - self.last_s, now_s
        self.run.append_metrics(cycle, metrics | {"seconds_per_cycle": seconds})
        self.first = self.first or (cycle, now_s)
        if cycle % self.line_every == 0 or cycle == self.schedule.num_cycles:
            self.run.say(self._line(cycle, metrics, now_s))

    def _line(self, cycle: int, metrics: Metrics, now_s: float) -> str:
        assert self.first is not None
        pace_s = (now_s - self.first[1]) / max(1, cycle - self.first[0])
        left_s = int(pace_s * (self.schedule.num_cycles - cycle))
        losses = "  ".join(
            f"{name} {value:.4g}" for name, value in metrics.items() if "grad_norm" not in name
        )
        total = self.schedule.num_cycles
        return f"cycle {cycle}/{total}  {pace_s:.2f} s each, {left_s} s left  {losses}"
