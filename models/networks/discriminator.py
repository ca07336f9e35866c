"""The discriminator on the backbone's features: 002 section 3.4 (papers as in docs/method.md)."""

import copy

from diffusers import HunyuanVideoTransformer3DModel
from jaxtyping import Float
from torch import Tensor, nn

from magicdistill.models.networks.backbone import Features
from magicdistill.models.networks.placement import WHOLE, Placement


class Discriminator(nn.Module):
    """A copy of the first single-stream block and a head with one logit for each video token.

    The block starts from the backbone's weights and shares none with it. The paper says nothing of
    the head: this one is ours.
    """

    def __init__(
        self, transformer: HunyuanVideoTransformer3DModel, placement: Placement = WHOLE
    ) -> None:
        super().__init__()
        first = transformer.single_transformer_blocks[0]
        width = transformer.config["num_attention_heads"] * transformer.config["attention_head_dim"]
        with placement.gathered(list(first.parameters())):
            self.block = copy.deepcopy(first)
        self.block.requires_grad_(requires_grad=True)
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        ).to(transformer.dtype)

    def forward(self, features: Features) -> Float[Tensor, "b n"]:
        """Return float32 logits, one for each video token, positive for real clips."""
        video, _ = self.block(features.video, features.text, *features.modulation)
        return self.head(video).squeeze(-1).float()
