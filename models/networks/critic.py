"""The critic: both scores and the discriminator on one frozen base."""

from typing import Literal, NamedTuple

import torch
from diffusers import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn

from magicdistill.models.networks.backbones.registry import family_of, lora_targets
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.config import LoraConfig
from magicdistill.models.networks.discriminator import Discriminator
from magicdistill.models.networks.lora import add_lora, lora_strength
from magicdistill.models.networks.placement import WHOLE, Placement
from magicdistill.models.networks.transformer import VelocityModel


class Judged(NamedTuple):
    """What the discriminator judges: the arguments of the network that makes its features."""

    x_sigma: Float[Tensor, "b c f h w"]
    sigma: Float[Tensor, " b"]
    conditions: Conditions
    guidance: Float[Tensor, " b"] | None = None


class Critic(nn.Module):
    """A frozen base with one LoRA, which gives the real and the fake score, and a discriminator.

    All are one module, so that one engine holds the base once and trains the LoRA and the
    discriminator. Without `adversarial` there is no discriminator.
    """

    def __init__(
        self,
        base: ModelMixin,
        lora: LoraConfig,
        *,
        adversarial: bool,
        placement: Placement = WHOLE,
    ) -> None:
        super().__init__()
        # Before the LoRA is added: the discriminator's copy of a block has none.
        self.discriminator = Discriminator(base, placement) if adversarial else None
        add_lora(base, lora.rank, lora_targets(family_of(base), lora.targets))
        self.score = VelocityModel(base)

    def forward(
        self,
        x_sigma: Float[Tensor, "b c f h w"],
        sigma: Float[Tensor, " b"],
        conditions: Conditions,
        guidance: Float[Tensor, " b"] | None = None,
        *,
        output: Literal["velocity", "logits"],
        judged: Judged | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return v (b c f h w) at the LoRA strength in force, or logits (b n) on the bare base.

        With `judged`, which may be another batch, return v and its logits. An engine calls its
        module as a whole, and under ZeRO-3 gathers weights ahead only inside such a call: a loss
        that needs both asks for both at once. They share no computation, because the LoRA acts in
        every block of the one and in none of the other.
        """
        if output == "logits":
            return self.logits(x_sigma, sigma, conditions, guidance)
        v = self.velocity(x_sigma, sigma, conditions, guidance)
        return v if judged is None else (v, self.logits(*judged))

    def velocity(
        self,
        x_sigma: Float[Tensor, "b c f h w"],
        sigma: Float[Tensor, " b"],
        conditions: Conditions,
        guidance: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b c f h w"]:
        """Return v, with a gradient only where the LoRA is trained or `x_sigma` asks for one."""
        trained = any(parameter.requires_grad for parameter in self.score.parameters())
        has_gradient = torch.is_grad_enabled() and (trained or x_sigma.requires_grad)
        with torch.set_grad_enabled(has_gradient):
            return self.score(x_sigma, sigma, conditions, guidance)

    def logits(
        self,
        x_sigma: Float[Tensor, "b c f h w"],
        sigma: Float[Tensor, " b"],
        conditions: Conditions,
        guidance: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b n"]:
        """Return the discriminator's logits, one per video token.

        The features are those of the base without the LoRA. Gradients enter the base only where
        `x_sigma` asks for them, which it does in the generator's update: the critic's own update
        trains the discriminator alone through the logits, and saves the base's backward.
        """
        assert self.discriminator is not None, "the recipe's adversarial weight is 0"
        backbone_gradient = torch.is_grad_enabled() and x_sigma.requires_grad
        with lora_strength(self.score, 0.0), torch.set_grad_enabled(backbone_gradient):
            features = self.score.backbone.features(x_sigma, sigma, conditions, guidance)
        return self.discriminator(features)
