"""What a cycle of a method runs through which network: the forwards, and what follows of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from magicdistill.models.objectives.config import (
    AdversarialPart,
    CfgDistillMethod,
    DistributionMatchingConfig,
    FinetuneMethod,
    LcmMethod,
    MethodConfig,
    SamplerConfig,
)

Gradient = Literal["none", "inputs", "lora", "weights"]
"""What a backward computes: nothing, the input's gradient through frozen weights, that and a
LoRA's, or the gradient of all weights."""
Blocks = Literal["all", "double", "discriminator"]
"""The whole transformer, its part before the single-stream blocks, or the discriminator's own."""


@dataclass(frozen=True)
class ForwardPass:
    """A forward of a network, and its backward."""

    role: str
    what: str
    gradient: Gradient = "none"
    samples: int = 1
    """Samples in one batch for each sample of the micro-batch."""
    repeats: float = 1
    """Forwards one after the other; a mean where it is drawn."""
    blocks: Blocks = "all"


@dataclass(frozen=True)
class Update:
    """An update: the graphs of its passes live until its backward."""

    name: str
    passes: tuple[ForwardPass, ...]
    times: int = 1
    """Times in a cycle."""


def cycle_updates(method: MethodConfig, *, embeds: bool) -> list[Update]:
    """Return what a cycle runs, nothing for a method that trains no transformer.

    `embeds` tells whether the teacher takes the guidance scale as an input.
    """
    match method:
        case FinetuneMethod():
            return [_one("generator", ForwardPass("generator", "flow matching", "weights"))]
        case LcmMethod():
            guided = _guided(method.teacher.guidance, embeds=embeds)
            return [
                _one(
                    "generator",
                    ForwardPass("generator", "teacher's step", samples=guided),
                    ForwardPass("generator", "target"),
                    ForwardPass("generator", "student", "weights"),
                )
            ]
        case CfgDistillMethod():
            return [_one("generator", *_cfg_distillation("generator", embeds=embeds))]
        case DistributionMatchingConfig():
            return _distribution_matching(method, embeds=embeds)
    return []


def samples_per_cycle(method: MethodConfig, batch_size: int, updates: Sequence[Update]) -> int:
    """Return how many samples a cycle reads."""
    if isinstance(method, DistributionMatchingConfig) and method.share_rollout:
        return batch_size
    return batch_size * sum(update.times for update in updates)


def _one(name: str, *passes: ForwardPass) -> Update:
    return Update(name, passes)


def _guided(scale: float | None, *, embeds: bool) -> int:
    """Return the forwards of a guided velocity; None is a scale that is drawn."""
    return 1 if embeds or scale == 1 else 2


def _cfg_distillation(teacher: str, *, embeds: bool) -> tuple[ForwardPass, ForwardPass]:
    return (
        ForwardPass(teacher, "guided teacher", samples=_guided(None, embeds=embeds)),
        ForwardPass("generator", "guidance distillation", "weights", samples=2),
    )


def _distribution_matching(method: DistributionMatchingConfig, *, embeds: bool) -> list[Update]:
    critic = [ForwardPass("critic", "fake score", "lora")]
    generator = [ForwardPass("generator", "generator", "weights"), _scores(method, embeds=embeds)]
    if isinstance(method, AdversarialPart) and method.adversarial_weight > 0:
        parts = 3 if method.r1_weight > 0 else 2
        critic += [
            ForwardPass("critic", "features", samples=parts, blocks="double"),
            ForwardPass(
                "critic", "discriminator", "weights", samples=parts, blocks="discriminator"
            ),
        ]
        generator += [
            ForwardPass("critic", "features", "inputs", blocks="double"),
            ForwardPass("critic", "discriminator", "inputs", blocks="discriminator"),
        ]
    if method.cfg_distillation is not None:
        generator += _cfg_distillation("critic", embeds=embeds)
    rollout = _rollout(method.sampler, shared=method.share_rollout)
    if method.share_rollout:
        return [
            _one("rollout", rollout),
            Update("critic", tuple(critic), method.num_fake_updates),
            _one("generator", *generator),
        ]
    return [
        Update("critic", (rollout, *critic), method.num_fake_updates),
        _one("generator", rollout, *generator),
    ]


def _rollout(sampler: SamplerConfig, *, shared: bool) -> ForwardPass:
    """All steps where the rollout is shared, else up to a step that is drawn evenly."""
    steps = sampler.num_steps if shared else (sampler.num_steps + 1) / 2
    return ForwardPass("generator", "rollout", repeats=steps)


def _scores(method: DistributionMatchingConfig, *, embeds: bool) -> ForwardPass:
    """Real and fake score in one batch, and the real one's prediction under the null prompt."""
    scale = method.real_guidance
    if scale is None and method.cfg_distillation is None:
        scale = method.sampler.guidance
    return ForwardPass("critic", "both scores", samples=1 + _guided(scale, embeds=embeds))
