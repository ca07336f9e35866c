"""Engines: one per trained role, on plain torch or on DeepSpeed."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from magicdistill.models.objectives.types import ParameterGroup
from magicdistill.models.profiling import span
from magicdistill.platform.checkpoints.engine_state import (
    ShardPlace,
    load_role,
    refresh_zero_weights,
    snapshot_role,
    trainable,
    zero_shard_places,
)
from magicdistill.platform.checkpoints.flat_shards import Snapshot
from magicdistill.platform.config.sections import (
    DeepSpeedEngineConfig,
    EngineConfig,
    OptimizerConfig,
    TorchEngineConfig,
)
from magicdistill.platform.engines.clipping import Clipping, zero_gradients
from magicdistill.platform.engines.deepspeed_import import import_deepspeed
from magicdistill.platform.engines.zero3_traces import keep_traces
from magicdistill.platform.planning.memory import BUCKET_NUMEL


class Engine(Protocol):
    """Trains the parameters of one role.

    In bfloat16 the optimiser updates float32 copies of them, the master weights, in whose dtype
    gradients are added up and averaged over the ranks too. Forwards read them rounded.
    """

    module: nn.Module
    is_replicated: bool
    """Whether every rank holds all master weights, and not a part of them."""

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

    def step(self) -> dict[str, float]:
        """Clip, and update the parameters after the window's last backward.

        Returns the norm of every group's gradient before clipping, by the name of its metric.
        """
        ...

    def places(self) -> list[ShardPlace]:
        """Return where this rank keeps master weights, or the parameters that serve as such."""
        ...

    def refresh(self) -> None:
        """Let forwards read the master weights as they are now; called on every rank."""
        ...

    def snapshot(self) -> Snapshot:
        """Copy parameters, optimiser and schedule to host memory; called on every rank.

        Frozen parameters come from the recipe's weights instead.
        """
        ...

    def load(self, directory: Path) -> None:
        """Restore what snapshots of any engine wrote on any number of ranks."""
        ...


Groups = Mapping[str, ParameterGroup]


def build_engine(
    config: EngineConfig,
    module: nn.Module,
    optimizer: OptimizerConfig,
    *,
    num_micro_batches: int,
    groups: Groups | None = None,
) -> Engine:
    """Wrap a role's module; its trainable parameters are those with `requires_grad`.

    Their groups are clipped each by itself; None: all of them together.
    """
    if isinstance(config, DeepSpeedEngineConfig):
        return DeepSpeedEngine(config, module, optimizer, num_micro_batches, groups)
    return TorchEngine(config, module, optimizer, num_micro_batches, groups)


def _groups_of(module: nn.Module, groups: Groups | None) -> Groups:
    """Return all trainable parameters as one group where there are no groups.

    Raises ValueError where groups leave some of them out, which would never be trained.
    """
    parameters = list(trainable(module).values())
    groups = groups or {"all": ParameterGroup(parameters)}
    grouped = [parameter for group in groups.values() for parameter in group.parameters]
    if sorted(map(id, grouped)) != sorted(map(id, parameters)):
        raise ValueError(
            f"the parameter groups {', '.join(groups)} do not hold every trained parameter once: "
            "mend the method's parameter_groups"
        )
    return groups


def build_optimizer(
    groups: Iterable[Sequence[Tensor]], config: OptimizerConfig
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """Return AdamW over groups of parameters and its schedule."""
    optimizer = torch.optim.AdamW(
        [{"params": list(group)} for group in groups],
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

    is_replicated = True

    def __init__(
        self,
        config: TorchEngineConfig,
        module: nn.Module,
        optimizer: OptimizerConfig,
        num_micro_batches: int,
        groups: Groups | None = None,
    ) -> None:
        groups = _groups_of(module, groups)
        self.masters = dict[nn.Parameter, Tensor]()
        """Master weights by the parameters that are their rounded copies; none in float32."""
        if config.precision == "bf16":
            parameters = trainable(module).values()
            self.masters = {p: p.detach().float().clone() for p in parameters}
            module.to(torch.bfloat16)
        for parameter, master in self.masters.items():
            parameter.register_post_accumulate_grad_hook(_collector(master))
        self.module = module
        self.optimizer, self.schedule = build_optimizer(
            [[self.masters.get(p, p) for p in group.parameters] for group in groups.values()],
            optimizer,
        )
        self.config = optimizer
        self.clipping = Clipping(groups, optimizer.clip_norm)
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

    def step(self) -> dict[str, float]:
        """Clip, update, advance the schedule."""
        norms = self.clipping(gradients_of(self.optimizer), ranks_share=False)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        self.refresh()
        return norms

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the master weights."""
        for parameter, master in self.masters.items():
            parameter.copy_(master)

    def snapshot(self) -> Snapshot:
        """Copy every rank's share."""
        return snapshot_role(
            self.module,
            self.optimizer,
            self.schedule,
            self.places(),
            replicated=True,
        )

    def load(self, directory: Path) -> None:
        """Read everything on every rank."""
        load_role(directory, self.module, self.optimizer, self.schedule, self.places())
        follow_recipe(self.optimizer, self.schedule, self.config)

    def places(self) -> list[ShardPlace]:
        """Return all master weights."""
        owners = {name: self.masters.get(p, p) for name, p in trainable(self.module).items()}
        return [ShardPlace(name, 0, owner, 0, owner.numel()) for name, owner in owners.items()]

    @span("collectives")
    def _average_gradients(self) -> None:
        gradients = [gradient for group in gradients_of(self.optimizer) for gradient in group]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for gradient, part in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))


def gradients_of(optimizer: torch.optim.Optimizer) -> list[list[Tensor]]:
    """Return the gradients that an optimiser's parameters have, by group."""
    return [
        [p.grad for p in group["params"] if p.grad is not None] for group in optimizer.param_groups
    ]


def _collector(master: Tensor) -> Callable[[Tensor], None]:
    """Return a hook that moves a parameter's new gradient to its master, in float32."""

    def collect(parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        master.grad = gradient.float() if master.grad is None else master.grad.add_(gradient)

    return collect


class DeepSpeedEngine:
    """One DeepSpeed engine: ZeRO 0-3 over the ranks of the job."""

    def __init__(
        self,
        config: DeepSpeedEngineConfig,
        module: nn.Module,
        optimizer: OptimizerConfig,
        num_micro_batches: int,
        groups: Groups | None = None,
    ) -> None:
        groups = _groups_of(module, groups)
        self.config = optimizer
        self.is_replicated = config.zero_stage == 0
        self.clipping = Clipping(groups, optimizer.clip_norm)
        self.optimizer, self.schedule = build_optimizer(
            [group.parameters for group in groups.values()], optimizer
        )
        self.engine, *_ = import_deepspeed().initialize(
            model=module,
            model_parameters=[p for p in module.parameters() if p.requires_grad],
            optimizer=self.optimizer,
            lr_scheduler=self.schedule,
            config=deepspeed_config(config, num_micro_batches),
        )
        self.module = self.engine.module
        if config.zero_stage == 3:
            keep_traces(self.engine)

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

    def step(self) -> dict[str, float]:
        """Clip, update and advance the schedule at the boundary."""
        held = gradients_of(self.optimizer) if self.is_replicated else zero_gradients(self.engine)
        shared = not self.is_replicated
        norms = self.clipping(held, ranks_share=shared, device=self.engine.device)
        self.engine.step()
        return norms

    def places(self) -> list[ShardPlace]:
        """Return this rank's part of the master weights."""
        return zero_shard_places(self.engine)

    def refresh(self) -> None:
        """Round the master weights, and exchange them where ranks hold whole parameters."""
        refresh_zero_weights(self.engine)

    def snapshot(self) -> Snapshot:
        """Copy this rank's shard, or its share where all ranks hold the same."""
        return snapshot_role(
            self.module,
            self.optimizer,
            self.schedule,
            self.places(),
            replicated=self.is_replicated,
        )

    def load(self, directory: Path) -> None:
        """Read this rank's shard."""
        load_role(directory, self.module, self.optimizer, self.schedule, self.places())
        self.refresh()
        follow_recipe(self.optimizer, self.schedule, self.config)


def deepspeed_config(config: DeepSpeedEngineConfig, num_micro_batches: int) -> dict[str, Any]:
    """Translate the recipe into DeepSpeed's own configuration.

    Left to itself, DeepSpeed adds up and reduces the gradients of bfloat16 parameters in bfloat16,
    and clips all of a role's together: both are set otherwise here.
    """
    offload = {"device": "cpu"}
    zero: dict[str, Any] = {
        "stage": config.zero_stage,
        "stage3_param_persistence_threshold": config.whole_numel,
        "reduce_bucket_size": BUCKET_NUMEL,
    }
    if config.offload_optimizer:
        zero["offload_optimizer"] = offload
    if config.offload_parameters:
        zero["offload_param"] = offload
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": num_micro_batches,
        "gradient_clipping": 0.0,  # `Clipping` does it by group
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": zero,
        "bf16": {"enabled": config.precision == "bf16"},
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # offloaded states are updated by torch's AdamW
    }
