"""Flow matching on data."""

import torch
from torch.nn import functional

from magicdistill.models.diffusion.flow import logit_normal_sigma, noised, velocity
from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.networks.transformer import VelocityModel
from magicdistill.models.objectives.types import Batch, Loss, Method, Networks


class Finetune(Method):
    """Train the generator to predict E[eps - x0 | x_sigma] (002 Eq. 1). Known."""

    def __init__(self, generator: VelocityModel, *, shift: float, uniform_share: float) -> None:
        super().__init__({"generator": generator})
        self.shift, self.uniform_share = shift, uniform_share

    def loss(self, role: str, networks: Networks, batch: Batch, rng: Rng) -> Loss:
        """Return the mean squared error of the velocity."""
        normal = rng.normal("sigma", ())
        sigma = torch.where(
            rng.uniform("law") < self.uniform_share,
            rng.uniform("uniform-sigma"),
            logit_normal_sigma(normal, self.shift),
        )
        at = noised(batch.x0, rng.normal("eps", batch.x0.shape[1:]), sigma)
        v = networks["generator"](at.x_sigma, at.sigma, batch.conditions)
        loss = functional.mse_loss(v, velocity(batch.x0, at.eps))
        return Loss(loss, {"flow_matching": loss.detach()})
