"""The training of a VAE's decoder."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from magicdistill.models.methods.base import Method, MethodConfig, Placement
from magicdistill.models.networks.presets import ModelConfig


class VaeMethod(MethodConfig):
    """Train the decoder of the VAE; the encoder is a closed-form patch code."""

    roles = ("decoder",)
    makes = "vae"
    data = "pixels"

    name: Literal["vae"]
    latent_noise: float = Field(default=0.03, ge=0)
    """Standard deviation of the noise on the decoder's input, in units of the latents'."""
    edge_weight: float = Field(default=0.3, ge=0)
    """Weight of the L1 distance of spatial and temporal differences."""

    @property
    def purpose(self) -> str:
        """Runs that train a VAE."""
        return "vae"

    @property
    def headline(self) -> str:
        """The part that is trained."""
        return "**Training of a VAE decoder**"

    def problems(self, model: ModelConfig, num_cycles: int) -> Iterator[str]:
        """Yield that the encoder of another family has no closed form."""
        if not (vae := model.shapes.vae).has_patch_code:
            yield (
                f"name vae: the preset {model.preset} has a {vae.class_name}, whose encoder has no "
                "closed form; give its trained VAE to model.vae instead"
            )

    def build(self, model: ModelConfig, placement: Placement) -> Method:
        """Load the VAE, or build it with random weights."""
        from magicdistill.models.methods.build import vae
        from magicdistill.models.objectives.vae import VaeTraining

        return VaeTraining(vae(model), latent_noise=self.latent_noise, edge_weight=self.edge_weight)
