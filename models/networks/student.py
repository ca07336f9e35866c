"""Students that are trained beside a frozen teacher or take the guidance scale as an input."""

from typing import Literal

import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.models.embeddings import TimestepEmbedding
from jaxtyping import Float
from torch import Tensor

from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.placement import WHOLE, Placement
from magicdistill.models.networks.transformer import VelocityModel


class Student(VelocityModel):
    """A trained network that carries its frozen teacher.

    One module, so that one engine shards both and keeps optimiser states for the student alone.
    """

    def __init__(
        self, transformer: HunyuanVideoTransformer3DModel, teacher: HunyuanVideoTransformer3DModel
    ) -> None:
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


def add_guidance_embedding(
    transformer: HunyuanVideoTransformer3DModel, placement: Placement = WHOLE
) -> None:
    """Give a network the guidance scale as an input, which at first has no effect.

    The embedding's last linear is zero, so that a fresh student equals its teacher at any scale.
    A network that has the input already is not changed.
    """
    config, embedding = transformer.config, transformer.time_text_embed
    if config["guidance_embeds"]:
        return
    width = config["num_attention_heads"] * config["attention_head_dim"]
    with placement.building():
        embedder = TimestepEmbedding(embedding.time_proj.num_channels, width)
    last = list(embedder.linear_2.parameters())
    with placement.gathered(last) as kept:
        if kept:
            for parameter in last:
                torch.nn.init.zeros_(parameter)
    embedding.guidance_embedder = embedder
    transformer.register_to_config(guidance_embeds=True)
