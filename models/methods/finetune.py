"""Flow matching on data."""

from typing import Literal

from pydantic import Field

from magicdistill.models.methods.base import Method, MethodConfig, Placement
from magicdistill.models.methods.forward_passes import ForwardPass, Update
from magicdistill.models.networks.presets import ModelConfig


class FinetuneMethod(MethodConfig):
    """Flow matching on data: teacher pre-training and fine-tuning. Known: 003 section 3."""

    makes = "teacher"

    name: Literal["finetune"]
    shift: float = Field(default=1.0, gt=0)
    """Flow shift of the logit-normal noise level."""
    uniform_share: float = Field(default=0.15, ge=0, le=1)
    """Share of samples with uniform instead of logit-normal sigma."""

    @property
    def purpose(self) -> str:
        """Runs that train a teacher."""
        return "teacher"

    @property
    def headline(self) -> str:
        """The network that is trained."""
        return "**Training of a teacher**"

    def cycle_updates(self, *, embeds: bool) -> tuple[Update, ...]:
        """Return the one update of the generator."""
        forward = ForwardPass("generator", "flow matching", "weights")
        return (Update("generator", (forward,)),)

    def build(self, model: ModelConfig, placement: Placement) -> Method:
        """Build the generator from the teacher's weights."""
        from magicdistill.models.methods.build import teacher
        from magicdistill.models.networks.transformer import VelocityModel
        from magicdistill.models.objectives.flow_matching import Finetune

        generator = VelocityModel(teacher(model, placement))
        return Finetune(generator, shift=self.shift, uniform_share=self.uniform_share)
