"""Engines: one per trained role, on plain torch or on DeepSpeed."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from magicdistill.models.profiling import span
from magicdistill.platform.checkpoints.engine_state import (
    ShardPlace,
    load_role,
    local_flat_shard,
    local_shard,
    owners,
    save_role,
    shape_of,
    trainable,
    zero_shard_places,
)
from magicdistill.platform.checkpoints.flat_shards import (
    WEIGHT,
    FlatShard,
    FlatShardReader,
    write_flat_shards,
)
from magicdistill.platform.config.sections import (
    DeepSpeedEngineConfig,
    EngineConfig,
    OptimizerConfig,
    TorchEngineConfig,
)
from magicdistill.platform.training.deepspeed_import import import_deepspeed


class Engine(Protocol):
    """Trains the parameters of one role."""

    module: nn.Module

    @property
    def lr(self) -> float:
        """The learning rate of the next update."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's forward so that `backward` can follow."""
        ...

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulate a micro-batch's gradient; `last` closes the accumulation window."""
        ...

    def step(self) -> float:
        """Update the parameters after the window's last backward; return the gradient norm."""
        ...

    def updated(self) -> list[Tensor]:
        """Return what the optimiser updates on this rank: float32 copies where it keeps any."""
        ...

    def save(self, directory: Path) -> None:
        """Write parameters, optimiser and schedule; called on every rank.

        Frozen parameters come from the recipe's weights instead.
        """
        ...

    def load(self, directory: Path) -> None:
        """Restore what `save` of any engine wrote on any number of ranks."""
        ...


def build_engine(
    config: EngineConfig, module: nn.Module, optimizer: OptimizerConfig, *, num_micro_batches: int
) -> Engine:
    """Wrap a role's module; its trainable parameters are those with `requires_grad`."""
    if isinstance(config, DeepSpeedEngineConfig):
        return DeepSpeedEngine(config, module, optimizer, num_micro_batches)
    return TorchEngine(config, module, optimizer, num_micro_batches)


def build_optimizer(
    module: nn.Module, config: OptimizerConfig
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """Return AdamW over the trainable parameters and its schedule."""
    optimizer = torch.optim.AdamW(
        [p for p in module.parameters() if p.requires_grad],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
    return optimizer, LambdaLR(optimizer, lr_factor(config))


def follow_recipe(
    optimizer: torch.optim.Optimizer, schedule: LambdaLR, config: OptimizerConfig
) -> None:
    """Let a restored optimiser obey the recipe, which may have changed since it was saved."""
    rate = config.lr * lr_factor(config)(schedule.last_epoch)
    chosen = {"betas": config.betas, "eps": config.eps, "weight_decay": config.weight_decay}
    for group in optimizer.param_groups:
        group.update(chosen, lr=rate, initial_lr=config.lr)
    schedule.base_lrs = [config.lr] * len(schedule.base_lrs)


def lr_factor(config: OptimizerConfig) -> Callable[[int], float]:
    """Return the schedule: linear warm-up, then constant or half a cosine down to `final_lr`."""
    floor = config.final_lr / config.lr

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
        if config.decay_steps is None:
            return warm
        progress = min(1.0, step / config.decay_steps)
        return warm * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))

    return factor


class TorchEngine:
    """Plain data parallelism: whole parameters on every rank, averaged gradients."""

    def __init__(
        self,
        config: TorchEngineConfig,
        module: nn.Module,
        optimizer: OptimizerConfig,
        num_micro_batches: int,
    ) -> None:
        self.module = module.to(torch.bfloat16) if config.precision == "bf16" else module
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer, self.schedule = build_optimizer(module, optimizer)
        self.config = optimizer
        self.clip_norm = optimizer.clip_norm
        self.num_micro_batches = num_micro_batches

    @property
    def lr(self) -> float:
        """The learning rate of the next update."""
        return self.optimizer.param_groups[0]["lr"]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module."""
        return self.module(*args, **kwargs)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulate; the window's last backward averages over the ranks."""
        (loss / self.num_micro_batches).backward()
        if last and dist.is_initialized() and dist.get_world_size() > 1:
            self._average_gradients()

    def step(self) -> float:
        """Clip, update, advance the schedule."""
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        return float(norm)

    def updated(self) -> list[Tensor]:
        """Return the values of `_shard_places`."""
        return owners(self._shard_places())

    def save(self, directory: Path) -> None:
        """Write every rank's share."""
        save_role(
            directory,
            self.module,
            self.optimizer,
            self.schedule,
            self._shard_places(),
            replicated=True,
        )

    def load(self, directory: Path) -> None:
        """Read everything on every rank."""
        load_role(directory, self.module, self.optimizer, self.schedule, self._shard_places())
        follow_recipe(self.optimizer, self.schedule, self.config)

    def _shard_places(self) -> list[ShardPlace]:
        return [ShardPlace(n, 0, p, 0, p.numel()) for n, p in trainable(self.module).items()]

    @span("collectives")
    def _average_gradients(self) -> None:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for gradient, part in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))


class DeepSpeedEngine:
    """One DeepSpeed engine: ZeRO 0-3 over the ranks of the job."""

    def __init__(
        self,
        config: DeepSpeedEngineConfig,
        module: nn.Module,
        optimizer: OptimizerConfig,
        num_micro_batches: int,
    ) -> None:
        self.config = optimizer
        self.optimizer, self.schedule = build_optimizer(module, optimizer)
        self.engine, *_ = import_deepspeed().initialize(
            model=module,
            model_parameters=[p for p in module.parameters() if p.requires_grad],
            optimizer=self.optimizer,
            lr_scheduler=self.schedule,
            config=deepspeed_config(config, optimizer, num_micro_batches),
        )
        self.module = self.engine.module

    @property
    def lr(self) -> float:
        """The learning rate of the next update."""
        return self.optimizer.param_groups[0]["lr"]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the engine's forward."""
        return self.engine(*args, **kwargs)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulate; DeepSpeed divides by the window and reduces at its boundary."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss)
        if not last:
            self.engine.step()

    def step(self) -> float:
        """Update, clip and advance the schedule at the boundary."""
        norm = None
        if self.engine.optimizer is self.optimizer:  # DeepSpeed wraps none, and measures nothing
            gradients = [p.grad for p in trainable(self.module).values() if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
        self.engine.step()
        return float(self.engine.get_global_grad_norm() if norm is None else norm)

    def updated(self) -> list[Tensor]:
        """Return this rank's shards, or everything where all ranks hold the same."""
        return owners(zero_shard_places(self.engine))

    def save(self, directory: Path) -> None:
        """Write this rank's shard, or its share where all ranks hold the same."""
        save_role(
            directory,
            self.module,
            self.optimizer,
            self.schedule,
            zero_shard_places(self.engine),
            replicated=self.engine.zero_optimization_stage() == 0,
        )

    def load(self, directory: Path) -> None:
        """Read this rank's shard."""
        load_role(
            directory, self.module, self.optimizer, self.schedule, zero_shard_places(self.engine)
        )
        follow_recipe(self.optimizer, self.schedule, self.config)


def deepspeed_config(
    config: DeepSpeedEngineConfig, optimizer: OptimizerConfig, num_micro_batches: int
) -> dict[str, Any]:
    """Translate the recipe into DeepSpeed's own configuration."""
    offload = {"device": "cpu"}
    zero: dict[str, Any] = {"stage": config.zero_stage, "stage3_param_persistence_threshold": 0}
    if config.offload_optimizer:
        zero["offload_optimizer"] = offload
    if config.offload_parameters:
        zero["offload_param"] = offload
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": num_micro_batches,
        "gradient_clipping": optimizer.clip_norm or 0.0,
        "zero_optimization": zero,
        "bf16": {"enabled": config.precision == "bf16"},
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # offloaded states are updated by torch's AdamW
    }


class Ema:
    """Exponential moving average of a role's trainable parameters, each rank its own shards."""

    def __init__(self, role: str, module: nn.Module, decay: float) -> None:
        self.role, self.decay = role, decay
        self.parameters = trainable(module)
        self.live = [local_shard(p) for p in self.parameters.values()]
        self.average = [p.detach().float().clone() for p in self.live]

    def save(self, directory: Path) -> None:
        """Write the average; called on every rank."""
        shapes = {name: shape_of(p) for name, p in self.parameters.items()}
        sharded = any(hasattr(p, "ds_id") for p in self.parameters.values())
        write_flat_shards(directory, self._flat_shards(), shapes, {}, replicated=not sharded)

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote on any number of ranks."""
        reader = FlatShardReader(directory)
        for piece in self._flat_shards():
            reader.fill(piece)

    def _flat_shards(self) -> Iterator[FlatShard]:
        for (name, parameter), average in zip(self.parameters.items(), self.average, strict=True):
            yield local_flat_shard(f"{WEIGHT}/{name}", parameter, average)

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights."""
        torch._foreach_lerp_(self.average, [p.float() for p in self.live], 1 - self.decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Run with the averaged weights, then put the trained ones back."""
        trained = [p.detach().clone() for p in self.live]
        self._write(self.average)
        try:
            yield
        finally:
            self._write(trained)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for live, value in zip(self.live, values, strict=True):
            live.copy_(value)


def averaged(ema: Ema | None) -> AbstractContextManager[None]:
    """Run the body with a role's averaged weights, where the recipe averages any."""
    return ema.swapped() if ema else nullcontext()
