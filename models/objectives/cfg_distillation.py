"""Guidance distillation: the guided velocity in one forward (003 section 3.1, Eq. 6-9)."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from magicdistill.models.diffusion.flow import Noised, noised, shift_sigma, velocity
from magicdistill.models.diffusion.guidance import guided
from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.diffusion.samplers import Velocity
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.student import Student
from magicdistill.models.objectives.config import CfgDistillation, GuidanceRange
from magicdistill.models.objectives.types import Batch, Loss, Method, Networks


def draw_guidance(scales: GuidanceRange, rng: Rng) -> Float[Tensor, " b"]:
    """Draw one Ho scale for each sample, uniformly. Known: 003 section 3.1."""
    low, high = scales.ho
    return low + (high - low) * rng.uniform("guidance")


def cfg_distillation_terms(
    student: Callable[..., Tensor],
    teacher: Velocity,
    at: Noised,
    conditions: Conditions,
    guidance: Float[Tensor, " b"],
    target: Float[Tensor, "b c f h w"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return L_cfg = MSE(v_teacher, v_student(guidance)) and L_base = MSE(target, v_student(1)).

    `teacher` is the guided field at these scales, `target` the velocity eps - x0 of the data.
    Known: 003 Eq. 6 and 9; Eq. 9 prints no scale, reconstructed as none (Ho 1). One doubled
    forward of the student serves both.
    """
    with torch.no_grad():
        v_guided = teacher(at.x_sigma, at.sigma, conditions)
    doubled = (torch.cat([at.x_sigma] * 2), torch.cat([at.sigma] * 2))
    scales = torch.cat([guidance, torch.ones_like(guidance)])
    v = student(*doubled, Conditions.cat([conditions] * 2), guidance=scales)
    at_scale, at_one = v.chunk(2)
    return functional.mse_loss(at_scale, v_guided), functional.mse_loss(at_one, target)


def cfg_distillation_loss(
    config: CfgDistillation,
    student: Callable[..., Tensor],
    teacher: Callable[..., Tensor],
    batch: Batch,
    rng: Rng,
    guidance: Float[Tensor, " b"],
    *,
    teacher_embeds: bool,
) -> Loss:
    """Return lambda L_cfg + L_base on real latents at uniform noise levels (003 Eq. 8). Known."""
    assert batch.conditions is not None
    sigma = shift_sigma(rng.uniform("cfg-sigma"), config.shift)
    at = noised(batch.x0, rng.normal("cfg-eps", batch.x0.shape[1:]), sigma)
    cfg, base = cfg_distillation_terms(
        student,
        guided(teacher, guidance, batch.null, embeds=teacher_embeds),
        at,
        batch.conditions,
        guidance,
        velocity(batch.x0, at.eps),
    )
    terms = {"cfg": cfg.detach(), "cfg_base": base.detach(), "guidance": guidance.mean()}
    return Loss(config.weight * cfg + config.base_weight * base, terms)


class CfgDistill(Method):
    """Train a guidance-embedded generator to do what its frozen teacher does in two forwards."""

    def __init__(self, config: CfgDistillation, student: Student) -> None:
        super().__init__({"generator": student})
        self.config, self.student = config, student

    def loss(self, role: str, networks: Networks, batch: Batch, rng: Rng) -> Loss:
        """Return the distillation loss at guidance scales drawn from the range."""
        network = networks["generator"]
        return cfg_distillation_loss(
            self.config,
            network,
            partial(network, of="teacher"),
            batch,
            rng,
            draw_guidance(self.config.guidance, rng),
            teacher_embeds=self.student.teacher.guidance_embeds,
        )
