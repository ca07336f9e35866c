"""Latent consistency distillation."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from magicdistill.models.methods.base import Method, MethodConfig, Placement
from magicdistill.models.methods.forward_passes import ForwardPass, Update, guided_forwards
from magicdistill.models.networks.presets import ModelConfig
from magicdistill.models.objectives.config import SamplerConfig


class LcmMethod(MethodConfig):
    """Latent consistency distillation, the paper's baseline. Known: 002 appendix B."""

    name: Literal["lcm"]
    sampler: SamplerConfig = SamplerConfig()
    teacher: SamplerConfig = SamplerConfig(num_steps=28)
    """The grid on which neighbours are made consistent, by Euler steps of the teacher."""
    huber_c: float = Field(default=1e-3, gt=0)
    """Constant of the pseudo-Huber distance, in units of the latents."""

    @model_validator(mode="after")
    def _teacher_follows_the_flow(self) -> "LcmMethod":
        if self.teacher.name != "euler":
            raise ValueError(f"teacher.name {self.teacher.name}: the teacher's step is euler's")
        return self

    @property
    def trained_sampler(self) -> SamplerConfig:
        """The student's few steps."""
        return self.sampler

    def problems(self, model: ModelConfig, num_cycles: int) -> Iterator[str]:
        """Yield why the student cannot be guided."""
        if self.sampler.guidance != 1 and not model.shapes.transformer.guidance_embeds:
            yield (
                f"sampler.guidance {self.sampler.guidance:g}: these weights have no input for it; "
                "give 1, and guide the teacher by method.teacher.guidance"
            )

    def cycle_updates(self, *, embeds: bool) -> tuple[Update, ...]:
        """Return the one update of the student, which carries its teacher."""
        guided = guided_forwards(self.teacher.guidance, embeds=embeds)
        forwards = (
            ForwardPass("generator", "teacher's step", samples=guided),
            ForwardPass("generator", "target"),
            ForwardPass("generator", "student", "weights"),
        )
        return (Update("generator", forwards),)

    def build(self, model: ModelConfig, placement: Placement) -> Method:
        """Build a student beside its frozen teacher."""
        from magicdistill.models.methods.build import student
        from magicdistill.models.objectives.lcm import Lcm

        return Lcm(
            student(model, placement, takes_guidance=False),
            self.sampler,
            self.teacher,
            huber_c=self.huber_c,
        )
