"""Students that are trained beside a frozen teacher."""

from typing import Literal

import torch
from diffusers import ModelMixin
from jaxtyping import Float
from torch import Tensor

from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.transformer import VelocityModel


class Student(VelocityModel):
    """A trained network that carries its frozen teacher.

    One module, so that one engine shards both and keeps optimiser states for the student alone.
    """

    def __init__(self, transformer: ModelMixin, teacher: ModelMixin) -> None:
        super().__init__(transformer)
        self.teacher = VelocityModel(teacher).requires_grad_(False)

    def forward(
        self,
        x_sigma: Float[Tensor, "b c f h w"],
        sigma: Float[Tensor, " b"],
        conditions: Conditions,
        guidance: Float[Tensor, " b"] | None = None,
        *,
        of: Literal["student", "teacher"] = "student",
    ) -> Float[Tensor, "b c f h w"]:
        """Predict v with the student, or with the teacher and without gradient."""
        if of == "student":
            return super().forward(x_sigma, sigma, conditions, guidance)
        with torch.no_grad():
            return self.teacher(x_sigma, sigma, conditions, guidance)
