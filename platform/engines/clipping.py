"""Measure and clip gradients, each parameter group by itself, also where ranks share them out.

Under one limit for a whole role, the group with the largest gradients would decide how far the
others move: the factor 1e4 on a LoRA's loss would shrink a discriminator's gradients as much.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from magicdistill.models.objectives.types import ParameterGroup


class Clipping:
    """Clips each group to `clip_norm`, counted without the factor on its loss; None: to nothing."""

    def __init__(self, groups: Mapping[str, ParameterGroup], clip_norm: float | None) -> None:
        alone = len(groups) == 1
        self.metrics = ["grad_norm" if alone else f"{name}/grad_norm" for name in groups]
        self.scales = [group.loss_scale for group in groups.values()]
        self.clip_norm = clip_norm or math.inf

    @torch.no_grad()
    def __call__(
        self,
        gradients: Sequence[Sequence[Tensor]],
        *,
        ranks_share: bool,
        device: torch.device | str = "cpu",
    ) -> dict[str, float]:
        """Scale the gradients, listed by group; return every group's norm before, as a metric.

        `ranks_share` says that each rank holds a part of them; `device` is where ranks exchange.
        """
        norms = torch.stack([nn.utils.get_total_norm(group).to(device) for group in gradients])
        if ranks_share and dist.get_world_size() > 1:
            squares = norms.square()
            dist.all_reduce(squares)
            norms = squares.sqrt()
        for group, norm, scale in zip(gradients, norms, self.scales, strict=True):
            if group:
                factor = (self.clip_norm * scale / (norm + 1e-6)).clamp(max=1)
                torch._foreach_mul_(list(group), factor.to(group[0].device))
        values = (float(norm) / scale for norm, scale in zip(norms, self.scales, strict=True))
        return dict(zip(self.metrics, values, strict=True))


def zero_gradients(engine: Any) -> list[list[Tensor]]:
    """Return this rank's part of the averaged gradients in DeepSpeed, as its step will read them.

    They are listed by the optimiser's groups and can be changed in place between the last
    backward of an accumulation window and the step.
    """
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        groups: list[list[Tensor]] = [[] for _ in optimizer.optimizer.param_groups]
        for part, owner in enumerate(optimizer.fp32_partitioned_groups_flat):
            offloaded = optimizer.offload_optimizer
            held = [owner.grad] if offloaded else optimizer.averaged_gradients[part]
            groups[optimizer.sub_group_to_group_id[part]] += held
        return groups
    if hasattr(optimizer, "fp32_groups_gradient_flat_partition"):  # stage 1 in bfloat16
        return [[part] for part in optimizer.fp32_groups_gradient_flat_partition]
    if optimizer.cpu_offload:
        return [[owner.grad] for owner in optimizer.single_partition_of_fp32_groups]
    return [optimizer.averaged_gradients[i] for i in range(len(optimizer.bit16_groups))]
