"""What videos cost that are generated beside a training and after it."""

from collections.abc import Sequence
from dataclasses import replace

from magicdistill.models.diffusion.guidance import forwards_per_step
from magicdistill.models.methods.forward_passes import ForwardPass
from magicdistill.models.networks.backbones.base import Sample
from magicdistill.models.objectives.config import SamplerConfig
from magicdistill.platform.config.experts import ALL_LEVELS
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.config.sections import PairsConfig
from magicdistill.platform.config.teacher_sampling import teacher_sampler
from magicdistill.platform.planning.flops import forward_bytes, operations
from magicdistill.platform.planning.memory import (
    Parameters,
    Row,
    decoding_rows,
    number_bytes,
    vae_row,
)


def pair_operations(pairs: PairsConfig | None, sample: Sample) -> float:
    """Return the operations of one pair; 0 where none are made."""
    if pairs is None or pairs.stored is not None:
        return 0
    alone = replace(sample, sequence_parallel=1)
    return operations(alone, _pair_steps(pairs, sample), recompute="none")


def pair_rows(
    recipe: Recipe, parts: Sequence[Parameters], sample: Sample, num_samples: int
) -> tuple[Row, ...]:
    """Return the memory of an actor that makes pairs: the generator, and its workspace."""
    pairs = recipe.pairs
    if pairs is None or pairs.stored is not None:
        return ()
    size = number_bytes(recipe.engine)
    numel = sum(part.total for part in parts if part.role == "generator")
    alone = replace(sample, sequence_parallel=1)
    space = num_samples * forward_bytes(alone, _pair_steps(pairs, sample), recompute="none")
    return (
        Row("pairs", "generator", "parameters", size * numel),
        Row("pairs", "steps", "inside a block", space),
    )


def evaluation_rows(recipe: Recipe, parts: Sequence[Parameters], sample: Sample) -> tuple[Row, ...]:
    """Return the memory of an actor of the evaluation, when it samples or when it decodes."""
    evaluation = recipe.evaluation
    if evaluation is None:
        return ()
    numel = _numel(parts)
    alone = replace(sample, sequence_parallel=1, activation_bytes=2)
    steps = ForwardPass("evaluation", "sampling", samples=_samples(teacher_sampler(recipe), sample))
    space = evaluation.batch_size * forward_bytes(alone, steps, recompute="none")
    sampling = Row("evaluation", "sampling", "inside a block", space)
    (decoding,) = decoding_rows(evaluation, recipe.model.shapes, sample, evaluation.batch_size)
    worst = max(sampling, decoding, key=lambda row: row.bytes)
    network = Row("evaluation", "network", "parameters", 2 * numel)
    return (network, vae_row(recipe.model.shapes), worst)


def other_expert_rows(recipe: Recipe, parts: Sequence[Parameters]) -> tuple[Row, ...]:
    """Return the memory on the host of the expert beside which a worker's network is validated.

    It is read in float32; the GPU holds one layer of it.
    """
    if recipe.method.noise_levels == ALL_LEVELS:
        return ()
    return (Row("validation", "other expert", "parameters", 4 * _numel(parts), "host"),)


def _numel(parts: Sequence[Parameters]) -> int:
    """Return the parameters of a network; a LoRA is merged into it."""
    whole = ("network", "frozen base")
    return sum(p.total for p in parts if p.role == "generator" and p.part in whole)


def evaluation_operations(recipe: Recipe, sample: Sample) -> float:
    """Return the operations of all held-out clips: of the teacher with many steps and with few, of
    the student, and of the generator of pairs, whole and cut short."""
    evaluation, few, pairs = recipe.evaluation, recipe.method.trained_sampler, recipe.pairs
    if evaluation is None:
        return 0
    samplers: list[SamplerConfig] = [teacher_sampler(recipe)]
    if few is not None:
        samplers += [few] * (len({"euler", few.name}) + 1)
        samplers += [pairs.sampler, few] if pairs is not None else []
    passes = (
        ForwardPass(
            "evaluation", "sampling", samples=_samples(sampler, sample), repeats=sampler.num_steps
        )
        for sampler in samplers
    )
    alone = replace(sample, sequence_parallel=1)
    return evaluation.num_clips * sum(operations(alone, step, recompute="none") for step in passes)


def _samples(sampler: SamplerConfig, sample: Sample) -> int:
    """Return the samples in the batch of a sampler's step for each clip, two where it is guided."""
    cfg = sampler.cfg(embeds=sample.shapes.guidance_embeds)
    return forwards_per_step(cfg, embeds=False)


def _pair_steps(pairs: PairsConfig, sample: Sample) -> ForwardPass:
    samples = _samples(pairs.sampler, sample)
    return ForwardPass("pairs", "steps", samples=samples, repeats=pairs.sampler.num_steps)


def video_operations(recipe: Recipe, sample: Sample) -> float:
    """Return the operations of sampling once with the sampler that the generator is trained for."""
    sampler = recipe.method.trained_sampler
    if sampler is None:
        return 0
    samples = _samples(sampler, sample)
    steps = ForwardPass("generator", "sampling", samples=samples, repeats=sampler.num_steps)
    return operations(replace(sample, sequence_parallel=1), steps, recompute="none")
