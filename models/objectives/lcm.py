"""Latent consistency distillation: the paper's baseline (002 appendix B, after FastVideo)."""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from magicdistill.models.diffusion.flow import noised, per_sample, sigma_grid, x0_from_velocity
from magicdistill.models.diffusion.guidance import embedded, guided
from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.diffusion.samplers import Velocity, euler_step
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.student import Student
from magicdistill.models.objectives.config import SamplerConfig
from magicdistill.models.objectives.dmd import Latents
from magicdistill.models.objectives.huber import PAPER_C, pseudo_huber
from magicdistill.models.objectives.types import Batch, Loss, Method, Networks

Sigmas = Float[Tensor, " b"]


@torch.no_grad()
def consistency_target(
    student: Velocity,
    teacher: Velocity,
    x_sigma: Latents,
    sigma: Sigmas,
    sigma_next: Sigmas,
    conditions: Conditions,
) -> Latents:
    """Return the student's x0 one Euler step of the teacher further on; no average of weights."""
    v = teacher(x_sigma, sigma, conditions)
    x_next = euler_step(x_sigma, v, per_sample(sigma, v), per_sample(sigma_next, v))
    return x0_from_velocity(x_next, student(x_next, sigma_next, conditions), sigma_next)


def consistency_loss(
    student: Velocity,
    teacher: Velocity,
    x_sigma: Latents,
    sigma: Sigmas,
    sigma_next: Sigmas,
    conditions: Conditions,
    *,
    huber_c: float = PAPER_C,
) -> Float[Tensor, ""]:
    """Return the pseudo-Huber distance of the student's x0 at sigma to the target. Known."""
    target = consistency_target(student, teacher, x_sigma, sigma, sigma_next, conditions)
    x0 = x0_from_velocity(x_sigma, student(x_sigma, sigma, conditions), sigma)
    return pseudo_huber(x0, target, huber_c)


class Lcm(Method):
    """Train the generator to give the same x0 all along a path of its frozen teacher."""

    def __init__(
        self, student: Student, sampler: SamplerConfig, teacher: SamplerConfig, *, huber_c: float
    ) -> None:
        super().__init__({"generator": student})
        if sampler.guidance != 1 and not student.guidance_embeds:
            raise ValueError(
                f"method.sampler.guidance {sampler.guidance}: this student has no guidance "
                "input; set it to 1, and guide its teacher by method.teacher.guidance"
            )
        self.student, self.sampler, self.grid, self.huber_c = student, sampler, teacher, huber_c

    def loss(self, role: str, networks: Networks, batch: Batch, rng: Rng) -> Loss:
        """Return the consistency loss between neighbours of the teacher's grid."""
        grid, network = self.grid, networks["generator"]
        sigmas = sigma_grid(grid.num_steps, grid.shift, batch.x0.device)
        index = (rng.uniform("grid") * grid.num_steps).long()
        at = noised(batch.x0, rng.normal("eps", batch.x0.shape[1:]), sigmas[index])
        assert batch.conditions is not None
        loss = consistency_loss(
            embedded(network, self.sampler.guidance, embeds=self.student.guidance_embeds),
            guided(
                partial(network, of="teacher"),
                grid.guidance,
                batch.null,
                embeds=self.student.teacher.guidance_embeds,
            ),
            at.x_sigma,
            at.sigma,
            sigmas[index + 1],
            batch.conditions,
            huber_c=self.huber_c,
        )
        return Loss(loss, {"consistency": loss.detach()})
