"""Flow matching on data."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn import functional

from magicdistill.models.diffusion.draws import Draws
from magicdistill.models.diffusion.flow import add_noise, logit_normal_sigma, velocity
from magicdistill.models.networks.transformer import VelocityModel
from magicdistill.models.objectives.config import FinetuneMethod
from magicdistill.models.objectives.types import Batch, Loss, Networks


class Finetune:
    """Train the generator to predict E[eps - x0 | x_sigma] (002 Eq. 1). Known."""

    shares_batch = False

    def __init__(self, config: FinetuneMethod, generator: VelocityModel) -> None:
        self.config = config
        self.modules: Mapping[str, nn.Module] = {"generator": generator}

    def turns(self, cycle: int) -> Sequence[str]:
        """Update the generator once a cycle."""
        return ("generator",)

    def turn(self, role: str) -> AbstractContextManager[None]:
        """Change nothing."""
        return nullcontext()

    def loss(self, role: str, networks: Networks, batch: Batch, draws: Draws) -> Loss:
        """Return the mean squared error of the velocity."""
        normal = draws.normal("sigma", ())
        sigma = torch.where(
            draws.uniform("law") < self.config.uniform_share,
            draws.uniform("uniform-sigma"),
            logit_normal_sigma(normal, self.config.shift),
        )
        eps = draws.normal("eps", batch.x0.shape[1:])
        v = networks["generator"](add_noise(batch.x0, eps, sigma), sigma, batch.conditions)
        loss = functional.mse_loss(v, velocity(batch.x0, eps))
        return Loss(loss, {"flow_matching": loss.detach()})
