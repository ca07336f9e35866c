"""A plan as a table for people and as JSON for machines."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from magicdistill.models.networks.config import Recompute
from magicdistill.platform.config.sections import DeepSpeedEngineConfig
from magicdistill.platform.planning.budget import budget, copy_seconds, write_seconds
from magicdistill.platform.planning.gpu_rates import GIB
from magicdistill.platform.planning.memory import Row, total
from magicdistill.platform.planning.plan import RESERVE_BYTES, Plan, describe_fit
from magicdistill.platform.planning.time_line import BESIDE, IN_TURN

RECOMPUTED: dict[Recompute, str] = {
    "none": "kept",
    "selective": "recomputed but for attention",
    "full": "recomputed",
}
"""What happens to the activations of the blocks, for people."""


def format_plan(made: Plan, price: float | None = None) -> str:
    """Return memory by role and part, time, demand, cost and whether the recipe fits, for people.

    `price` is that of one GPU for an hour, in any currency.
    """
    peaks = "  ".join(f"{name} {total(rows) / GIB:.1f}" for name, rows in made.peaks.items())
    lines = [
        *_setting(made),
        "",
        "GiB on each rank, all the time",
        *_table(made.held),
        f"at the peak, during {made.peak!r}  (peaks: {peaks})",
        *_table(made.peaks[made.peak]),
        _line("reserve", "CUDA, NCCL, fragmentation", "estimated", RESERVE_BYTES),
        _line("total", "", "", made.gpu_bytes),
        "",
        *_demand(made),
        *_pairs(made),
        *_scoring(made),
        *_evaluation(made),
        *_sampling(made),
        *_budget(made, price),
        "",
        f"{made.recipe.name} {describe_fit(made)}",
    ]
    return "\n".join(lines)


def to_json(made: Plan, price: float | None = None) -> str:
    """Return the plan as JSON: bytes, operations, seconds and GPU-hours; see `format_plan`."""
    cluster, costs, line = made.recipe.cluster, budget(made), made.time_line
    values = {
        "recipe": made.recipe.name,
        "gpu": cluster.gpu if made.gpu else None,
        "num_workers": cluster.num_workers,
        "fits": made.fits,
        "gpu_bytes": made.gpu_bytes,
        "host_bytes": made.host_bytes,
        "held": [asdict(row) for row in made.held],
        "peaks": {name: [asdict(row) for row in rows] for name, rows in made.peaks.items()},
        "reserve_bytes": RESERVE_BYTES,
        "operations_per_cycle": made.operations_per_cycle * cluster.num_workers,
        "mfu": made.mfu,
        "inference_mfu": made.inference_mfu,
        "seconds_per_cycle": made.seconds_per_cycle,
        "seconds_by_kind": line and {kind: line.of(kind) for kind in (*IN_TURN, *BESIDE)},
        "samples_per_cycle": made.samples_per_cycle,
        "sample_bytes": made.sample_bytes,
        "pair_actors": made.num_pair_actors,
        "pair_bytes": made.pair_bytes,
        "evaluators": made.num_evaluators,
        "evaluation_bytes": made.evaluation_bytes,
        "seconds_per_video_second": made.seconds_per_video_second,
        "budget": costs and asdict(costs) | {"gpu_hours": costs.gpu_hours},
        "cost": costs and price and costs.gpu_hours * price,
        "remedies": made.remedies,
    }
    return json.dumps(values, indent=2)


def _setting(made: Plan) -> Iterator[str]:
    recipe, sample = made.recipe, made.sample
    engine, cluster = recipe.engine, recipe.cluster
    sharding = f"ZeRO-{engine.zero_stage}" if isinstance(engine, DeepSpeedEngineConfig) else "torch"
    device = f"{cluster.gpu} GPUs" if made.gpu else "CPU workers"
    blocks = RECOMPUTED[recipe.kernels.recompute_blocks]
    buckets = " and ".join(map(str, recipe.data.buckets))
    yield (
        f"{recipe.name}: {recipe.method.name} on {buckets}, "
        f"{sample.video_tokens} video and up to {sample.shapes.num_text_tokens} text tokens"
        + (f", {sample.image_tokens} image tokens" if sample.image_tokens else "")
    )
    yield (
        f"{cluster.num_workers} {device}, {sharding}, {engine.precision}, sequence parallel "
        f"{cluster.sequence_parallel}, blocks {blocks}; batch {recipe.schedule.batch_size} in "
        f"{recipe.schedule.num_micro_batches} micro-batch(es) of {made.num_samples} per group"
    )


def _table(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        yield _line(row.role, row.part, row.kind, row.bytes, row.place)


def _line(role: str, part: str, kind: str, count: float, place: str = "gpu") -> str:
    note = "" if place == "gpu" else "  in host memory"
    return f"  {role:<10} {part:<26} {kind:<18} {count / GIB:8.2f}{note}"


def _demand(made: Plan) -> Iterator[str]:
    cluster = made.recipe.cluster
    operations = made.operations_per_cycle * cluster.num_workers
    yield f"{operations / 1e15:.4g} PFLOP per cycle, recomputation included"
    seconds = made.seconds_per_cycle
    if not seconds:
        yield f"{made.samples_per_cycle} samples of {made.sample_bytes / 1e6:.3g} MB per cycle"
        return
    rate = made.samples_per_cycle / seconds
    hours = seconds * made.recipe.schedule.num_cycles / 3600
    yield (
        f"{seconds:.1f} s per cycle at {made.mfu:.0%} MFU: "
        f"{hours:.1f} h for {made.recipe.schedule.num_cycles} cycles"
    )
    if (line := made.time_line) is not None:
        parts = ", ".join(f"{kind} {line.of(kind):.2g}" for kind in IN_TURN)
        yield f"       {parts}; computation and exchanges in turn"
        yield (
            f"       {line.gathered_bytes / 1e9:.4g} GB of weights gathered; {line.hidden:.0%} of "
            "all gathers and reductions is hidden beside them"
        )
        yield f"       by {made.used_rates.source}"
    yield f"data: {rate:.3g} samples/s, {rate * made.sample_bytes / 1e6:.3g} MB/s from the cache"


def _pairs(made: Plan) -> Iterator[str]:
    pairs, wanted = made.recipe.pairs, made.num_pair_actors
    if pairs is None or not wanted:
        return
    advice = "enough" if pairs.num_actors >= wanted else f"too few: give pairs.num_actors {wanted}"
    yield (
        f"pairs: {made.samples_per_cycle} of {pairs.sampler.num_steps} steps per cycle take "
        f"{wanted} actor(s) as fast as a worker, and there are {pairs.num_actors}: {advice}"
    )
    yield f"       GiB on each actor, with the reserve: {made.pair_bytes / GIB:.1f}"
    yield from _table(made.pair_rows)
    if pairs.gpus_per_actor:
        gpus = pairs.num_actors * pairs.gpus_per_actor
        yield f"       {gpus:g} GPU(s) beside the workers' {made.recipe.cluster.num_workers}"


def _scoring(made: Plan) -> Iterator[str]:
    evaluation = made.recipe.evaluation
    if evaluation and evaluation.num_scored and evaluation.scored_by == "actor":
        workers = made.recipe.cluster.num_workers
        beside = f" on {evaluation.actor_gpus:g} GPU(s) beside the workers' {workers}"
        yield (
            f"scoring: {evaluation.num_scored} clips of every checkpoint by an actor"
            f"{beside if evaluation.actor_gpus else ''}"
        )


def _evaluation(made: Plan) -> Iterator[str]:
    evaluation, gpu = made.recipe.evaluation, made.gpu
    if evaluation is None or gpu is None:
        return
    seconds = made.evaluation_operations / (
        gpu.operations_per_s * made.inference_mfu * made.num_evaluators
    )
    yield (
        f"table at the end: {evaluation.num_clips} held-out clips of each way, after the training "
        f"on {made.num_evaluators} of its workers' GPUs: {seconds / 3600:.2g} h at "
        f"{made.inference_mfu:.0%} MFU, {made.evaluation_bytes / GIB:.1f} GiB on each with the "
        "reserve"
    )


def _sampling(made: Plan) -> Iterator[str]:
    seconds, sampler = made.seconds_per_video_second, made.recipe.method.trained_sampler
    if seconds is None or sampler is None:
        return
    gpu, gpus = made.recipe.cluster.gpu, math.ceil(seconds)
    yield (
        f"sampling: {seconds:.3g} s of one {gpu} for a second of video, {sampler.num_steps} steps "
        f"at {made.inference_mfu:.0%} MFU, VAE left out; real time takes {gpus} GPU(s)"
    )


def _budget(made: Plan, price: float | None) -> Iterator[str]:
    costs, mfu = budget(made), f"at {made.inference_mfu:.0%} MFU"
    if costs is None:
        return
    yield (
        f"data stage: up to {costs.num_windows} windows, one for each sample that is read: "
        f"{costs.cache_bytes / 1e9:.3g} GB in the cache, {costs.encoding_hours:.3g} GPU-hours to "
        f"encode {mfu}; decoding and scoring of clips left out"
    )
    yield (
        f"checkpoints: {costs.checkpoint_bytes / 1e9:.4g} GB each, up to {costs.num_checkpoints} "
        f"at a time; with the cache {costs.storage_bytes / 1e12:.3g} TB of storage"
    )
    written = write_seconds(costs.checkpoint_bytes).items()
    copied_s = copy_seconds(costs.checkpoint_bytes, made.recipe.cluster.num_workers)
    share = costs.checkpoint_bytes / made.recipe.cluster.num_workers
    due_s = (made.seconds_per_cycle or 0) * made.recipe.schedule.checkpoint_every
    yield (
        f"a checkpoint: due every {due_s:.0f} s; the training waits {copied_s:.1f} s for the copy "
        f"to host memory ({share / GIB:.1f} GiB a GPU), and goes on while it is written: "
        f"{', '.join(f'{seconds:.0f} s on {name}' for name, seconds in written)}"
    )
    cost = "" if price is None else f": {costs.gpu_hours * price:.0f} at {price:g} per GPU-hour"
    yield (
        f"cost: {costs.gpu_hours:.4g} GPU-hours of computation{cost} (training "
        f"{costs.training_hours:.4g} on {costs.num_gpus:g} GPUs, encoding "
        f"{costs.encoding_hours:.3g}, table {costs.evaluation_hours:.3g})"
    )
