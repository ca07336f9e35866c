"""The teacher with few steps."""

from typing import Literal

from magicdistill.models.methods.base import MethodConfig
from magicdistill.models.objectives.config import SamplerConfig


class EulerMethod(MethodConfig):
    """The teacher itself with few steps: the baseline that nothing is trained for."""

    roles = ()

    name: Literal["euler"]
    sampler: SamplerConfig = SamplerConfig()

    @property
    def trained_sampler(self) -> SamplerConfig:
        """The few steps."""
        return self.sampler

    @property
    def headline(self) -> str:
        """That there is nothing to train."""
        return "**The teacher as it is**, with few steps: nothing is trained"
