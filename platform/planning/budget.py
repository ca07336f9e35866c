"""What a planned run costs: GPU-hours of its stages, their price, and the storage that it fills."""

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from magicdistill.data_pipeline.config import Bucket
from magicdistill.models.networks.autoencoder.base import VaeConfig
from magicdistill.models.networks.autoencoder.vae import build_autoencoder
from magicdistill.platform.planning.plan import Plan

COUNTED_FRAMES = 17
"""Frames of the run of an encoder by which the operations of a frame are counted."""
STORAGE_BYTES_PER_S = {"EFS, elastic": 1e9, "FSx for Lustre, 2.4 TiB of 1,000 MB/s": 2.4e9}
"""What all nodes together write in a second, by storage (docs/first_run.md)."""
HOST_COPY_BYTES_PER_S = 4e9
"""What one rank copies from its GPU to pageable host memory in a second; assumed."""


@dataclass(frozen=True)
class Budget:
    """GPU-hours and bytes of a run on GPUs, from computation alone."""

    num_gpus: float
    """GPUs that the run holds at a time, those of its side actors included."""
    training_hours: float
    """GPU-hours of all cycles."""
    evaluation_hours: float
    """GPU-hours of the table at the end, which holds the GPUs of the training."""
    num_windows: int
    """Samples that the run reads: as many windows at most are worth encoding."""
    encoding_hours: float
    """GPU-hours that encode so many windows, without decoding and scoring their clips."""
    cache_bytes: float
    """Bytes of so many windows in the cache."""
    checkpoint_bytes: float
    """Bytes of one checkpoint."""
    num_checkpoints: int
    """Checkpoints that are there at a time: the newest, the best, and the one being written."""

    @property
    def gpu_hours(self) -> float:
        """GPU-hours of all stages."""
        return self.training_hours + self.evaluation_hours + self.encoding_hours

    @property
    def storage_bytes(self) -> float:
        """Bytes that the folder of the runs must take: latents and checkpoints."""
        return self.cache_bytes + self.num_checkpoints * self.checkpoint_bytes


def budget(made: Plan) -> Budget | None:
    """Return what a planned run costs; None for a run on CPUs."""
    gpu, seconds = made.gpu, made.seconds_per_cycle
    if gpu is None or seconds is None:
        return None
    recipe = made.recipe
    pairs, evaluation, schedule = recipe.pairs, recipe.evaluation, recipe.schedule
    workers = recipe.cluster.num_workers * recipe.cluster.gpus_per_worker
    beside = pairs.num_actors * pairs.gpus_per_actor if pairs and made.pair_rows else 0
    if evaluation and evaluation.num_scored and evaluation.scored_by == "actor":
        beside += evaluation.actor_gpus
    num_windows = made.samples_per_cycle * schedule.num_cycles
    per_hour = 3600 * gpu.operations_per_s * made.inference_mfu
    per_worker = made.evaluation_operations / max(1, made.num_evaluators)
    encoding = num_windows * encoding_operations(recipe.model.shapes.vae, recipe.data.bucket)
    return Budget(
        num_gpus=workers + beside,
        training_hours=(workers + beside) * seconds * schedule.num_cycles / 3600,
        evaluation_hours=(workers + beside) * per_worker / per_hour,
        num_windows=num_windows,
        encoding_hours=encoding / per_hour,
        cache_bytes=num_windows * made.sample_bytes,
        checkpoint_bytes=made.checkpoint_bytes,
        num_checkpoints=schedule.keep_checkpoints + 2,
    )


def write_seconds(checkpoint_bytes: float) -> dict[str, float]:
    """Return the seconds in which a checkpoint is written beside the training, by storage."""
    return {name: checkpoint_bytes / speed for name, speed in STORAGE_BYTES_PER_S.items()}


def copy_seconds(checkpoint_bytes: float, num_ranks: int) -> float:
    """Return the seconds for which a training waits while its ranks copy a checkpoint."""
    return checkpoint_bytes / num_ranks / HOST_COPY_BYTES_PER_S


def encoding_operations(vae: VaeConfig, bucket: Bucket) -> float:
    """Return the operations that encode one window: those of one run of the encoder, counted by
    torch on tensors without storage, for each of its frames."""
    frames = min(bucket.num_frames, COUNTED_FRAMES)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        pixels = torch.empty(1, 3, frames, bucket.height, bucket.width)
        vae.family().run_encoder(build_autoencoder(vae), pixels)
    return counter.get_total_flops() * bucket.num_frames / frames
