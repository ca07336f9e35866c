"""Guidance distillation alone."""

from typing import Literal

from magicdistill.models.methods.base import Method, MethodConfig, Placement
from magicdistill.models.methods.forward_passes import Update, cfg_distillation_forwards
from magicdistill.models.networks.presets import ModelConfig
from magicdistill.models.objectives.config import CfgDistillation


class CfgDistillMethod(CfgDistillation, MethodConfig):
    """Guidance distillation alone: a many-step student that needs one forward a step."""

    name: Literal["cfg-distill"]

    @property
    def distils_guidance(self) -> bool:
        """It teaches nothing else."""
        return True

    def cycle_updates(self, *, embeds: bool) -> tuple[Update, ...]:
        """Return the one update of the student, which carries its teacher."""
        return (Update("generator", cfg_distillation_forwards("generator", embeds=embeds)),)

    def build(self, model: ModelConfig, placement: Placement) -> Method:
        """Build a student that takes the guidance scale, beside its frozen teacher."""
        from magicdistill.models.methods.build import student
        from magicdistill.models.objectives.cfg_distillation import CfgDistill

        return CfgDistill(self, student(model, placement, takes_guidance=True))
