"""What a recipe will need of its GPUs, known before the run: memory, time and data."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

from magicdistill.models.methods.forward_passes import ForwardPass, Update
from magicdistill.models.networks.autoencoder.base import VaeConfig
from magicdistill.models.networks.backbones.base import Sample
from magicdistill.platform.config.overrides import RecipeError, merge, validate
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.config.sections import DeepSpeedEngineConfig
from magicdistill.platform.planning.flops import (
    num_frames,
    num_image_tokens,
    operations,
    sample_of,
)
from magicdistill.platform.planning.generation import (
    evaluation_operations,
    evaluation_rows,
    other_expert_rows,
    pair_operations,
    pair_rows,
    video_operations,
)
from magicdistill.platform.planning.gpu_rates import (
    GIB,
    GPUS,
    Gpu,
    Rates,
    network_of,
    published_rates,
)
from magicdistill.platform.planning.memory import (
    BUCKET_NUMEL,
    Parameters,
    Row,
    activation_rows,
    checkpoint_bytes,
    copy_row,
    count_parameters,
    decoding_rows,
    ema_row,
    engine_rows,
    number_bytes,
    total,
    update_row,
    vae_row,
)
from magicdistill.platform.planning.preflight import micro_batch
from magicdistill.platform.planning.time_line import (
    Sharding,
    TimeLine,
    forward_seconds,
    time_line,
)

RESERVE_BYTES = 5 * GIB
"""CUDA context, NCCL and fragmentation. Estimated, not measured."""


Change = dict[str, Any]
"""Recipe fields by dotted name."""


@dataclass(frozen=True)
class Plan:
    """What one rank holds and does."""

    recipe: Recipe
    sample: Sample
    num_samples: int
    """Samples of one micro-batch, which the ranks of a sequence group share."""
    held: tuple[Row, ...]
    """Memory that is taken all the time."""
    peaks: Mapping[str, tuple[Row, ...]]
    """Memory that each phase of a cycle takes in addition, by the name of the phase."""
    operations_per_cycle: float
    """Operations of one rank."""
    samples_per_cycle: int
    sample_bytes: float
    pair_operations: float
    """Operations that make one cycle's noise-data pairs; 0 where none are made."""
    pair_rows: tuple[Row, ...]
    """Memory of an actor that makes pairs."""
    evaluation_rows: tuple[Row, ...]
    """Memory of an actor that makes the held-out clips of the table at the end."""
    evaluation_operations: float
    """Operations of all these clips; 0 where none are made."""
    video_operations: float
    """Operations of sampling once with the generator; 0 where the method has no sampler."""
    checkpoint_bytes: float
    """Bytes of one checkpoint: trained weights in float32, AdamW's moments, the average."""
    updates: tuple[Update, ...]
    """What a cycle runs."""
    rates: Rates | None = None
    """How fast the GPUs compute; None takes published and estimated rates."""
    given_mfu: float | None = None
    """The share of the peak that was given instead of rates."""
    remedies: tuple[str, ...] = ()

    @property
    def gpu(self) -> Gpu | None:
        """The workers' GPU; None for CPUs, whose memory is counted but not limited."""
        cluster = self.recipe.cluster
        return GPUS[cluster.gpu] if cluster.gpus_per_worker else None

    @property
    def peak(self) -> str:
        """The phase that needs most memory."""
        return max(self.peaks, key=lambda name: total(self.peaks[name]))

    @property
    def gpu_bytes(self) -> float:
        """Memory that one GPU must have."""
        return total(self.held) + total(self.peaks[self.peak]) + RESERVE_BYTES

    @property
    def host_bytes(self) -> float:
        """Memory that the host must have for each GPU."""
        return total(self.held, "host") + total(self.peaks[self.peak], "host")

    @property
    def pair_bytes(self) -> float:
        """GPU memory that an actor that makes pairs needs; 0 where none are made."""
        return total(self.pair_rows) + RESERVE_BYTES if self.pair_rows else 0

    @property
    def evaluation_bytes(self) -> float:
        """GPU memory that an actor of the evaluation needs; 0 where there is none."""
        return total(self.evaluation_rows) + RESERVE_BYTES if self.evaluation_rows else 0

    @property
    def num_evaluators(self) -> int:
        """Number of actors that make the table at the end, each on the GPUs of a worker."""
        evaluation, cluster = self.recipe.evaluation, self.recipe.cluster
        if evaluation is None:
            return 0
        return min(cluster.num_workers, math.ceil(evaluation.num_clips / evaluation.batch_size))

    @property
    def fits(self) -> bool | None:
        """Whether host and GPUs, in training, for pairs and in evaluation, have enough memory; None
        on CPUs."""
        if self.gpu is None:
            return None
        has_room = self.gpu_bytes <= self.gpu_limit and self.pair_bytes <= self.pair_limit
        has_room = has_room and self.evaluation_bytes <= self.gpu_limit
        return has_room and self.host_bytes <= self.gpu.host_bytes

    @property
    def gpu_limit(self) -> float:
        """GPU memory that a worker may use; 0 on CPUs."""
        return (
            self.gpu.memory_bytes * min(1, self.recipe.cluster.gpus_per_worker) if self.gpu else 0
        )

    @property
    def pair_limit(self) -> float:
        """GPU memory that an actor that makes pairs may use; 0 on CPUs and without such actors."""
        pairs = self.recipe.pairs
        return self.gpu.memory_bytes * min(1, pairs.gpus_per_actor) if self.gpu and pairs else 0

    @property
    def used_rates(self) -> Rates:
        """How fast the GPUs compute."""
        return self.rates or published_rates(self.recipe)

    @cached_property
    def time_line(self) -> TimeLine | None:
        """A cycle on one rank; None on CPUs and where a share of the peak was given instead."""
        if self.gpu is None or self.given_mfu is not None:
            return None
        return self.scaled(self.recipe.cluster.num_workers)

    def scaled(self, num_workers: int) -> TimeLine:
        """Return a cycle on one rank of so many GPUs, each with the samples that it has now."""
        recipe = self.recipe
        return time_line(
            self.updates,
            self.sample,
            self.used_rates,
            network_of(recipe.cluster.gpu, num_workers),
            _sharding(recipe),
            recipe.kernels,
            num_samples=self.num_samples,
            num_micro_batches=recipe.schedule.num_micro_batches,
        )

    @property
    def seconds_per_cycle(self) -> float | None:
        """Seconds of a cycle by the time line, or at the given share of the peak; None on CPUs."""
        if self.gpu is None:
            return None
        if self.time_line is not None:
            return self.time_line.seconds
        return self.operations_per_cycle / (self.gpu.operations_per_s * self.mfu)

    @property
    def mfu(self) -> float:
        """The share of the peak that the training reaches; 0 on CPUs."""
        if self.given_mfu is not None or self.time_line is None or self.gpu is None:
            return self.given_mfu or 0
        done = self.operations_per_cycle / self.time_line.seconds
        return done / self.gpu.operations_per_s

    @cached_property
    def inference_mfu(self) -> float:
        """The share of the peak that a forward on one GPU reaches; 0 on CPUs."""
        if self.given_mfu is not None or self.gpu is None:
            return self.given_mfu or 0
        alone = replace(self.sample, sequence_parallel=1, lora_rank=0, activation_bytes=2)
        done = operations(alone, ForwardPass("", ""), recompute="none")
        return done / forward_seconds(alone, self.used_rates) / self.gpu.operations_per_s

    @property
    def seconds_per_video_second(self) -> float | None:
        """Seconds that one GPU computes for each second of video that the generator makes.

        Counts the network alone, in clips that share nothing. None on CPUs and where the method
        has no sampler.
        """
        gpu, window = self.gpu, self.recipe.data.bucket
        if gpu is None or not self.video_operations:
            return None
        seconds = self.video_operations / (gpu.operations_per_s * self.inference_mfu)
        return seconds / (num_frames(self.sample, self.recipe.model.shapes.vae) / window.fps)

    @property
    def num_pair_actors(self) -> int:
        """Number of actors that make pairs as fast as they are used; those on CPUs as fast as a
        worker."""
        cycles = self.pair_operations / self.operations_per_cycle
        if self.gpu is not None and self.pair_operations:
            cycles *= self.mfu / self.inference_mfu
        return math.ceil(cycles)


def plan(
    recipe: Recipe, *, mfu: float | None = None, rates: Rates | None = None, advise: bool = True
) -> Plan:
    """Plan a recipe; where it does not fit, `advise` names the settings that would make it fit.

    Time follows from `rates`, by default the published and estimated ones, or from `mfu` alone:
    the share of the GPUs' peak that everything reaches, above 0 and up to 1.

    Raises:
        RecipeError: if `mfu` is out of range, the method trains no transformer, or the batch does
            not divide.
    """
    if mfu is not None and not 0 < mfu <= 1:
        raise RecipeError(f"mfu {mfu}: it is a share of the peak, above 0 and up to 1")
    updates = cycle_updates(recipe)
    if not updates:
        raise RecipeError(f"method.name {recipe.method.name} trains no transformer to plan for")
    parts = count_parameters(recipe.method, recipe.model)  # type: ignore[arg-type]  frozen: they hash
    made = replace(_plan(recipe, parts, updates), rates=rates, given_mfu=mfu)
    if made.fits is not False or not advise:
        return made
    return replace(made, remedies=tuple(_remedies(recipe, parts, updates)))


def demand_fit(recipe: Recipe) -> None:
    """Raise RecipeError, which says what to change, for a recipe that does not fit on its GPUs."""
    if recipe.cluster.gpus_per_worker and cycle_updates(recipe):
        made = plan(recipe)
        if made.fits is False:
            raise RecipeError(f"{recipe.name} {describe_fit(made)}")


def describe_fit(made: Plan) -> str:
    """Say whether the recipe fits, and what to change where it does not."""
    if made.gpu is None:
        return "runs on CPUs, whose memory is not judged"
    of = f"{_size(made)} of {made.gpu_limit / GIB:.1f} GiB per {made.recipe.cluster.gpu}"
    if made.host_bytes:
        of += f", {made.host_bytes / GIB:.1f} of {made.gpu.host_bytes / GIB:.1f} GiB of its host"
    if made.pair_bytes:
        of += f", {made.pair_bytes / GIB:.1f} of {made.pair_limit / GIB:.1f} GiB per actor of pairs"
    if made.evaluation_bytes:
        of += f", {made.evaluation_bytes / GIB:.1f} GiB per actor of the evaluation"
    if made.fits:
        return f"fits: {of}"
    advice = "no setting helps; shorten the clips, make them smaller, or use other GPUs"
    if made.remedies:
        advice = "\n  ".join(["each of these makes it fit:", *made.remedies])
    return f"does not fit: {of}\n{advice}"


def cycle_updates(recipe: Recipe) -> Sequence[Update]:
    """Return what a cycle of the recipe's method runs."""
    embeds = recipe.model.shapes.transformer.guidance_embeds
    return recipe.method.cycle_updates(embeds=embeds)


def _size(made: Plan) -> str:
    return f"{made.gpu_bytes / GIB:.1f} GiB"


def _sharding(recipe: Recipe) -> Sharding:
    engine, size = recipe.engine, number_bytes(recipe.engine)
    if not isinstance(engine, DeepSpeedEngineConfig):
        return Sharding(0, size)
    return Sharding(
        engine.zero_stage,
        size,
        reduce_bucket=BUCKET_NUMEL,
        persistence_threshold=engine.whole_numel,
    )


def _plan(recipe: Recipe, parts: Sequence[Parameters], updates: Sequence[Update]) -> Plan:
    schedule, sample, num_samples = recipe.schedule, _sample(recipe), micro_batch(recipe)
    recompute = recipe.kernels.recompute_blocks
    per_sample = sum(
        update.times * operations(sample, step, recompute=recompute)
        for update in updates
        for step in update.forwards
    )
    sharing = num_samples * schedule.num_micro_batches / sample.sequence_parallel
    num_batches = 1 if recipe.method.shares_batch else sum(update.times for update in updates)
    num_read = num_batches * schedule.batch_size
    return Plan(
        recipe=recipe,
        sample=sample,
        num_samples=num_samples,
        held=tuple(_held(recipe, parts)),
        peaks=_peaks(recipe, parts, updates, sample, num_samples),
        operations_per_cycle=sharing * per_sample,
        samples_per_cycle=num_read,
        sample_bytes=_sample_bytes(sample, recipe.model.shapes.vae),
        pair_operations=num_read * pair_operations(recipe.pairs, sample),
        pair_rows=pair_rows(recipe, parts, sample, num_samples),
        evaluation_rows=evaluation_rows(recipe, parts, sample),
        evaluation_operations=evaluation_operations(recipe, sample),
        video_operations=video_operations(recipe, sample),
        checkpoint_bytes=_checkpoint_bytes(recipe, parts),
        updates=tuple(updates),
    )


def _sample(recipe: Recipe) -> Sample:
    """Return the sample of the bucket with the most tokens."""
    samples = (
        sample_of(
            bucket,
            recipe.model.shapes,
            sequence_parallel=recipe.cluster.sequence_parallel,
            activation_bytes=number_bytes(recipe.engine),
            lora_rank=recipe.method.lora_rank,
            image_tokens=num_image_tokens(recipe.data.prompts, recipe.model.shapes.transformer),
        )
        for bucket in recipe.data.buckets
    )
    return max(samples, key=lambda sample: sample.video_tokens)


def _held(recipe: Recipe, parts: Sequence[Parameters]) -> Iterator[Row]:
    engine, num_workers = recipe.engine, recipe.cluster.num_workers
    yield from engine_rows(parts, engine, num_workers)
    if recipe.schedule.ema_decay is not None:
        yield ema_row(parts, engine, num_workers)
    if recipe.evaluation is not None and recipe.schedule.sample_every is not None:
        yield vae_row(recipe.model.shapes)
        yield from other_expert_rows(recipe, parts)
    yield copy_row(_checkpoint_bytes(recipe, parts), num_workers)


def _checkpoint_bytes(recipe: Recipe, parts: Sequence[Parameters]) -> float:
    return checkpoint_bytes(parts, has_ema=recipe.schedule.ema_decay is not None)


def _peaks(
    recipe: Recipe,
    parts: Sequence[Parameters],
    updates: Sequence[Update],
    sample: Sample,
    num_samples: int,
) -> dict[str, tuple[Row, ...]]:
    recompute = recipe.kernels.recompute_blocks
    peaks = {
        update.name: activation_rows(update, sample, num_samples, recompute=recompute)
        for update in updates
    }
    peaks["update"] = (update_row(parts, recipe.engine, recipe.cluster.num_workers),)
    evaluation = recipe.evaluation
    if evaluation is not None and recipe.schedule.sample_every is not None:
        shapes = recipe.model.shapes
        peaks["validation"] = decoding_rows(evaluation, shapes, sample, evaluation.num_shown)
    return peaks


def _sample_bytes(sample: Sample, vae: VaeConfig) -> float:
    """Return what a cache stores of a sample: latents, a padded image prior, and its own prompt,
    in bf16."""
    shapes = sample.shapes
    text = sample.context_tokens * shapes.text_embed_dim + shapes.pooled_projection_dim
    return 2.0 * ((1 + vae.pads_prior) * sample.latent_numel + text)


def _remedies(
    recipe: Recipe, parts: Sequence[Parameters], updates: Sequence[Update]
) -> Iterator[str]:
    """Yield each setting that alone makes the recipe fit; where none does, the fewest together."""
    changes = list(_changes(recipe))
    together = [
        {key: value for change in changes[:count] for key, value in change.items()}
        for count in range(2, len(changes) + 1)
    ]
    for candidates, limit in ((changes, len(changes)), (together, 1)):
        found = (
            (change, made)
            for change in candidates
            if (made := _try(recipe, change, parts, updates)) and made.fits
        )
        lines = [flags_of(change) + f"  ({_size(made)})" for change, made in islice(found, limit)]
        if lines:
            yield from lines
            return


def _changes(recipe: Recipe) -> Iterator[Change]:
    """Yield changes that could make a recipe fit, the cheapest first."""
    cluster, schedule = recipe.cluster, recipe.schedule
    twice_split = {"cluster.sequence_parallel": 2 * cluster.sequence_parallel}
    twice_accumulated = {"schedule.num_micro_batches": 2 * schedule.num_micro_batches}
    yield {"kernels.recompute_blocks": "selective"}
    yield {"kernels.recompute_blocks": "full"}
    if recipe.evaluation is not None:
        yield {"evaluation.batch_size": 1}
    yield {"engine.kind": "deepspeed", "engine.zero_stage": 3}
    yield twice_accumulated
    yield twice_split | twice_accumulated
    yield twice_split | {"cluster.num_workers": 2 * cluster.num_workers}
    yield {"engine.kind": "deepspeed", "engine.offload_optimizer": True}
    yield {
        "engine.kind": "deepspeed",
        "engine.zero_stage": 3,
        "engine.offload_optimizer": True,
        "engine.offload_parameters": True,
    }


def _try(
    recipe: Recipe,
    change: Change,
    parts: Sequence[Parameters],
    updates: Sequence[Update],
) -> Plan | None:
    """Plan the changed recipe; None where it is not a valid one."""
    try:
        return _plan(changed(recipe, change), parts, updates)
    except RecipeError:
        return None


def changed(recipe: Recipe, change: Change) -> Recipe:
    """Return the recipe with some fields set; raises RecipeError where that is not a valid one."""
    nested: dict[str, dict[str, Any]] = {}
    for name, value in change.items():
        section, field = name.split(".")
        nested.setdefault(section, {})[field] = value
    return validate(Recipe, merge(Recipe, recipe.model_dump(), nested), flags_of(change))


def flags_of(change: Change) -> str:
    """Return the command line's flags that set these fields."""
    return " ".join(f"--{name} {str(value).lower()}" for name, value in change.items())
