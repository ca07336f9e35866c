"""Distribution matching alone, and what the methods that add to it have in common."""

import re
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import model_validator

from magicdistill.models.methods.base import Method, MethodConfig, Placement
from magicdistill.models.methods.forward_passes import (
    ForwardPass,
    Update,
    cfg_distillation_forwards,
    guided_forwards,
)
from magicdistill.models.networks.backbones.base import BackboneConfig
from magicdistill.models.networks.backbones.registry import lora_targets
from magicdistill.models.networks.config import LoraConfig
from magicdistill.models.networks.presets import ModelConfig
from magicdistill.models.objectives.config import (
    AdversarialPart,
    DistributionMatchingConfig,
    GroundTruthPart,
    SamplerConfig,
    WeakToStrongPart,
)

PARTS = {"dmd2": AdversarialPart, "magic": WeakToStrongPart, "magic-gt": GroundTruthPart}
"""The first method that has each part."""


class DistributionMatchingMethod(DistributionMatchingConfig, MethodConfig):
    """A method that matches distributions by a generator and a critic (002 section 3)."""

    roles = ("generator", "critic")
    notable = ("num_fake_updates",)

    @model_validator(mode="before")
    @classmethod
    def _refuse_parts_of_other_methods(cls, values: Any) -> Any:
        """Name the method that has a part; a zero weight of an absent part is left out."""
        if not isinstance(values, dict):
            return values
        kept = dict(values)
        for name, part in PARTS.items():
            for key in part.model_fields.keys() & kept.keys() - cls.model_fields.keys():
                if kept.pop(key) != 0:
                    raise ValueError(f"{values.get('name')} has no {key}; use method.name {name}")
        return kept

    @property
    def trained_sampler(self) -> SamplerConfig:
        """The sampler of its rollouts."""
        return self.sampler

    @property
    def noise_levels(self) -> tuple[float, float]:
        """The ends of its interval."""
        return self.interval.min, self.interval.max

    @property
    def distils_guidance(self) -> bool:
        """Whether the guidance scale is distilled in the same stage, or the real score's is."""
        return self.cfg_distillation is not None or self.real_guidance not in (None, 1)

    @property
    def uses_pairs(self) -> bool:
        """Whether it supervises the generator by pairs."""
        return self.pairs is not None

    @property
    def lora_rank(self) -> int:
        """The rank of the critic's LoRA."""
        return self.lora.rank

    def fitted_to(self, shapes: BackboneConfig) -> "DistributionMatchingMethod":
        """Return the method with the linears that get each LoRA."""
        changed = {
            name: lora.model_copy(update={"targets": lora_targets(type(shapes), lora.targets)})
            for name, lora in self._loras().items()
        }
        return self.model_copy(update=changed)

    @property
    def generator_lora(self) -> LoraConfig | None:
        """The LoRA as which the generator is trained."""
        return self.student_lora

    def _loras(self) -> dict[str, LoraConfig]:
        """Return the settings of each LoRA by their field."""
        found = {"lora": self.lora, "student": self.student_lora}
        return {name: lora for name, lora in found.items() if lora is not None}

    def updates_per_cycle(self, role: str) -> int:
        """Return the critic's updates, or the one of the generator after its warm-up."""
        return self.num_fake_updates if role == "critic" else 1

    def problems(self, model: ModelConfig, num_cycles: int) -> Iterator[str]:
        """Yield why the generator is never updated, or the LoRA does not fit the network."""
        if self.warmup_cycles >= num_cycles:
            yield (
                f"warmup_cycles {self.warmup_cycles}: the run has {num_cycles} cycles and would "
                f"never update the generator; give at most {num_cycles - 1}"
            )
        if self.student_lora is not None and model.teacher is None:
            yield (
                "student.kind lora: model.teacher is null, and its random weights would be lost "
                "with the run's processes; name the teacher, or give student.kind full"
            )
        if (
            self.sampler.guidance != 1
            and self.cfg_distillation is None
            and not model.takes_guidance
        ):
            yield (
                f"sampler.guidance {self.sampler.guidance:g}: these weights have no input for it; "
                "give 1, weights or a preset with the input, or method.cfg_distillation to add it"
            )
        for name, lora in self._loras().items():
            yield from _lora_problems(name, lora, model.shapes.transformer)

    def cycle_updates(self, *, embeds: bool) -> tuple[Update, ...]:
        """Return the critic's updates and the generator's, with their rollouts or after one."""
        critic, rank = self._critic_forwards(), self._student_rank
        generator = self._generator_forwards(embeds=embeds)
        steps = len(self.interval.steps(self.sampler))
        if self.share_rollout:
            return (
                Update(
                    "rollout", (ForwardPass("generator", "rollout", repeats=steps, lora_rank=rank),)
                ),
                Update("critic", critic, self.num_fake_updates),
                Update("generator", generator),
            )
        # the step that an update trains is drawn evenly; the generator's own forward is its last
        to_x0, to_input = (_drawn_rollout(n, steps - 1 + n, rank) for n in (1, 0))
        return (
            Update("critic", (*to_x0, *critic), self.num_fake_updates),
            Update("generator", (*to_input, *generator)),
        )

    @property
    def _student_rank(self) -> int:
        return self.student_lora.rank if self.student_lora else 0

    def _critic_forwards(self) -> tuple[ForwardPass, ...]:
        score = ForwardPass("critic", "fake score", "lora")
        if self.adversarial.adversarial_weight == 0:
            return (score,)
        parts = 3 if self.adversarial.r1_weight > 0 else 2
        return (
            score,
            ForwardPass("critic", "features", samples=parts, blocks="features"),
            ForwardPass(
                "critic", "discriminator", "weights", samples=parts, blocks="discriminator"
            ),
        )

    def _generator_forwards(self, *, embeds: bool) -> tuple[ForwardPass, ...]:
        trained, rank = "lora" if self.student_lora else "weights", self._student_rank
        forwards = [
            ForwardPass("generator", "generator", trained, lora_rank=rank),
            self._scores(embeds=embeds),
        ]
        if self.adversarial.adversarial_weight > 0:
            forwards += [
                ForwardPass("critic", "features", "inputs", blocks="features"),
                ForwardPass("critic", "discriminator", "inputs", blocks="discriminator"),
            ]
        if self.cfg_distillation is not None:
            forwards += cfg_distillation_forwards("critic", embeds=embeds)
        return tuple(forwards)

    def _scores(self, *, embeds: bool) -> ForwardPass:
        """Both scores in one batch, and the real one's prediction under the null prompt."""
        scale = self.real_guidance
        if scale is None and self.cfg_distillation is None:
            scale = self.sampler.guidance
        samples = 1 + guided_forwards(scale, embeds=embeds)
        return ForwardPass("critic", "both scores", samples=samples)

    def build(self, model: ModelConfig, placement: Placement) -> Method:
        """Build generator and critic from one teacher."""
        from magicdistill.models.methods.build import copy_of, lora_student, teacher, trained
        from magicdistill.models.networks.critic import Critic
        from magicdistill.models.networks.transformer import VelocityModel
        from magicdistill.models.objectives.distribution_matching import DistributionMatching

        base = teacher(model, placement)
        if self.student_lora is not None:
            generator = lora_student(base, self.student_lora, model, placement)
        else:
            first = base if model.generator is None else trained(model.generator, model, placement)
            generator = copy_of(first, placement, takes_guidance=self.cfg_distillation is not None)
        adversarial = self.adversarial.adversarial_weight > 0
        critic = Critic(base, self.lora, adversarial=adversarial, placement=placement)
        return DistributionMatching(self, VelocityModel(generator), critic)


def _drawn_rollout(fewest: int, most: int, rank: int) -> tuple[ForwardPass, ...]:
    """Return an update's own rollout, whose number of steps is drawn evenly; none of no step."""
    if most == 0:
        return ()
    repeats = (fewest + most) / 2
    return (ForwardPass("generator", "rollout", repeats=repeats, most=most, lora_rank=rank),)


def _lora_problems(name: str, lora: LoraConfig, shapes: BackboneConfig) -> Iterator[str]:
    """Yield why the LoRA of a field does not fit the network."""
    if lora.rank > shapes.model_dim:
        yield (
            f"{name}.rank {lora.rank}: the network is {shapes.model_dim} wide; give at most that"
        )
    if lora.targets != type(shapes).lora_targets:  # those fit the network
        yield from _target_problems(f"{name}.targets", lora, shapes)


def _target_problems(name: str, lora: LoraConfig, shapes: BackboneConfig) -> Iterator[str]:
    """Yield the patterns that name no linear of the network, which is built without storage."""
    import torch

    from magicdistill.models.networks.transformer import build_transformer

    with torch.device("meta"):
        modules = build_transformer(shapes).named_modules()
    linears = [name for name, module in modules if isinstance(module, torch.nn.Linear)]
    for pattern in lora.targets:
        try:
            matches = any(re.fullmatch(pattern, name) for name in linears)
        except re.error as error:
            yield f"{name} {pattern!r}: no regular expression ({error}); correct it"
            continue
        if not matches:
            yield f"{name} {pattern!r}: names no linear of the network, such as {linears[-2]}"


class DmdMethod(DistributionMatchingMethod):
    """Distribution matching alone. Known: 003 Eq. 4 and 5."""

    name: Literal["dmd"]
