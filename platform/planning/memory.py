"""Memory of one rank, by role and part: what engines keep, and what an update adds to it.

Parameters are counted exactly, on networks without storage; what the engines keep for them
follows from the ZeRO stage; activations come from `flops`.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
from torch import nn

from magicdistill.models.methods.base import MethodConfig
from magicdistill.models.methods.forward_passes import ForwardPass, Update
from magicdistill.models.networks.autoencoder.vae import build_autoencoder
from magicdistill.models.networks.backbones.base import Sample
from magicdistill.models.networks.config import Recompute
from magicdistill.models.networks.placement import WHOLE
from magicdistill.models.networks.presets import ModelConfig, NetworkPreset
from magicdistill.platform.config.sections import (
    DeepSpeedEngineConfig,
    EngineConfig,
    EvaluationConfig,
)
from magicdistill.platform.planning.flops import (
    FRESH_LATENTS,
    NUM_LATENTS,
    backward_bytes,
    forward_bytes,
    saved_bytes,
)

LIVE_NUMEL = 1_050_000_000
"""Number of gathered parameters that a ZeRO-3 engine keeps: DeepSpeed's limit and a prefetch."""
BUCKET_NUMEL = 250_000_000
"""Number of gradients that DeepSpeed reduces at once: 1 GB, as its own limit is in bfloat16."""
UPDATE_BYTES = 12
"""Bytes per trained parameter while it is updated: float32 gradient and AdamW's temporaries.
Estimated, not measured."""

Place = Literal["gpu", "host"]


@dataclass(frozen=True)
class Parameters:
    """Parameters of one part of a role."""

    role: str
    part: str
    total: int
    trained: int
    sizes: tuple[int, ...]
    """Numbers in each of them."""
    is_shared: bool = False
    """Whether a role before holds them."""


@dataclass(frozen=True)
class Row:
    """Memory that one thing takes on one rank."""

    role: str
    part: str
    kind: str
    bytes: float
    place: Place = "gpu"


def total(rows: Sequence[Row], place: Place = "gpu") -> float:
    """Return the bytes of all rows in one place."""
    return sum(row.bytes for row in rows if row.place == place)


@cache
def count_parameters(method: MethodConfig, model: ModelConfig) -> tuple[Parameters, ...]:
    """Build the method's networks without storage, and count."""
    weightless = model.without_weights().model_copy(update={"generator": model.generator})
    with torch.device("meta"):
        modules = method.build(weightless, WHOLE).modules
    held, parts = set[nn.Parameter](), list[Parameters]()
    for role, module in modules.items():
        parts += parts_of(role, module, held)
        held |= set(module.parameters())
    return tuple(parts)


def parts_of(role: str, module: nn.Module, held: Collection[nn.Parameter] = ()) -> list[Parameters]:
    """Count a role's parameters by part; `held` are those of other roles."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        is_frozen = role == "critic" or not parameter.requires_grad
        parts.setdefault(_part(name, is_frozen=is_frozen), []).append(parameter)
    return [
        replace(_counted(role, part, parameters), is_shared=parameters[0] in held)
        for part, parameters in parts.items()
    ]


def _counted(role: str, part: str, parameters: Sequence[nn.Parameter]) -> Parameters:
    sizes = tuple(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return Parameters(role, part, sum(sizes), trained, sizes)


def _part(name: str, *, is_frozen: bool) -> str:
    if "lora_" in name:
        return "LoRA"
    if name.startswith("discriminator."):
        return "discriminator"
    if name.startswith("teacher."):
        return "frozen teacher"
    return "frozen base" if is_frozen else "network"


def state_rows(part: Parameters, engine: EngineConfig, num_workers: int) -> list[Row]:
    """Return what an engine keeps for a part on one rank: parameters, gradients, optimiser."""
    size = number_bytes(engine)
    stage = engine.zero_stage if isinstance(engine, DeepSpeedEngineConfig) else 0
    optimizer, gradients, parameters = (num_workers if stage >= n else 1 for n in (1, 2, 3))
    of_gradient = 4 + 4 * (_place(engine, "gradients") == "host")  # a second copy in host memory
    if stage == 1 and engine.precision == "bf16":
        of_gradient += size  # DeepSpeed keeps those of the micro-batch too
    sizes = {
        "parameters": 0 if part.is_shared else size * part.total / parameters,
        "gradients": of_gradient * part.trained / gradients,
        "optimiser": _optimizer_bytes(engine) * part.trained / optimizer,
    }
    return [
        Row(part.role, part.part, kind, count, _place(engine, kind))
        for kind, count in sizes.items()
        if count
    ]


def number_bytes(engine: EngineConfig) -> int:
    """Return the bytes of one number of a parameter or an activation."""
    return 2 if engine.precision == "bf16" else 4


def _optimizer_bytes(engine: EngineConfig) -> int:
    """Return the bytes per parameter of Adam's moments, and of the float32 copy if there is one."""
    is_sharded = isinstance(engine, DeepSpeedEngineConfig) and engine.zero_stage > 0
    return 12 if is_sharded or engine.precision == "bf16" else 8


def _place(engine: EngineConfig, kind: str) -> Place:
    if not isinstance(engine, DeepSpeedEngineConfig):
        return "gpu"
    away = engine.offload_parameters if kind == "parameters" else engine.offload_optimizer
    return "host" if away else "gpu"


def engine_rows(parts: Sequence[Parameters], engine: EngineConfig, num_workers: int) -> list[Row]:
    """Return what the engines keep, including their buffers."""
    rows = [row for part in parts for row in state_rows(part, engine, num_workers)]
    if not isinstance(engine, DeepSpeedEngineConfig) or engine.zero_stage == 0:
        return rows
    size = number_bytes(engine)
    for role in dict.fromkeys(part.role for part in parts):
        if engine.zero_stage == 3:
            numel = sum(part.total for part in parts if part.role == role)
            own = [part for part in parts if part.role == role and not part.is_shared]
            sizes = [count for part in own for count in part.sizes]
            whole = sum(count for count in sizes if count <= engine.whole_numel)
            if whole:
                rows.append(Row(role, "all parts", "small parameters", size * whole))
            rows.append(Row(role, "all parts", "gathered layers", size * min(numel, LIVE_NUMEL)))
        # ranks exchange float32: below stage 3 a copy of what is gathered as it was computed
        of_bucket = 4 if engine.zero_stage == 3 or size == 4 else size + 4
        rows.append(Row(role, "all parts", "reduction bucket", of_bucket * BUCKET_NUMEL))
    return rows


def ema_row(parts: Sequence[Parameters], engine: EngineConfig, num_workers: int) -> Row:
    """Return the average of the first role's master weights, of which ranks share out the same."""
    role = parts[0].role
    sharded = isinstance(engine, DeepSpeedEngineConfig) and engine.zero_stage > 0
    trained = sum(part.trained for part in parts if part.role == role)
    count = 4 * trained / (num_workers if sharded else 1)
    return Row(role, "network", "EMA", count, _place(engine, "optimiser"))


def checkpoint_bytes(parts: Sequence[Parameters], *, has_ema: bool) -> float:
    """Return the size of a checkpoint: what each optimiser updates in float32 with its two moments,
    and the average of the first role's weights."""
    average = sum(part.trained for part in parts if part.role == parts[0].role) if has_ema else 0
    return 12.0 * sum(part.trained for part in parts) + 4.0 * average


def copy_row(num_bytes: float, num_workers: int) -> Row:
    """Return a rank's share of a checkpoint, which lies in host memory while a thread writes it.

    At most one is being written at a time.
    """
    return Row("all", "checkpoint", "copy being written", num_bytes / num_workers, "host")


def saved_rows(
    update: Update, sample: Sample, num_samples: int, *, recompute: Recompute
) -> tuple[Row, ...]:
    """Return what an update keeps of all its forward passes for their backwards."""
    return tuple(
        Row(step.role, step.what, "saved activations", num_samples * count)
        for step in update.forwards
        if (count := saved_bytes(sample, step, recompute=recompute))
    )


def activation_rows(
    update: Update, sample: Sample, num_samples: int, *, recompute: Recompute
) -> tuple[Row, ...]:
    """Return the memory that an update adds to what is held at the moment when it adds most.

    Forward passes run in order, and their backwards in the reverse, where each lets go of what its
    pass has saved. At any moment one block of one pass computes.
    """
    saved: tuple[Row, ...] = (latents_row(update, sample, num_samples),)
    moments = list[tuple[Row, ...]]()
    for step in update.forwards:
        forward = forward_bytes(sample, step, recompute=recompute)
        moments.append((*saved, _inside(step, num_samples * forward)))
        if (count := saved_bytes(sample, step, recompute=recompute)) == 0:
            continue
        saved = (*saved, Row(step.role, step.what, "saved activations", num_samples * count))
        backward = backward_bytes(sample, step, recompute=recompute)
        moments.append((*saved, _inside(step, num_samples * backward)))
    return max(moments, key=total)


def latents_row(update: Update, sample: Sample, num_samples: int) -> Row:
    """Return the latents of an update, of which every rank of a sequence group has all.

    A critic that makes a rollout of its own keeps none of it but the last prediction.
    """
    rolls_out = any(step.what == "rollout" for step in update.forwards)
    trains_it = any(step.gradient == "weights" for step in update.forwards if step.role != "critic")
    number = NUM_LATENTS if trains_it or not rolls_out else FRESH_LATENTS
    count = num_samples * number * 4 * sample.latent_numel
    return Row(update.forwards[0].role, "latents", "float32", count)


def kept_latents_row(update: Update, sample: Sample, num_samples: int) -> Row:
    """Return the latents that live from the forward to the backward: half of an update's.

    They are all of them where the discriminator judges two batches. Counted in rehearsals.
    """
    judged = [step.samples for step in update.forwards if step.blocks == "discriminator"]
    row = latents_row(update, sample, num_samples)
    return replace(row, bytes=row.bytes * max(judged, default=1) / 2)


def _inside(step: ForwardPass, count: float) -> Row:
    return Row(step.role, step.what, "inside a block", count)


def update_row(parts: Sequence[Parameters], engine: EngineConfig, num_workers: int) -> Row:
    """Return the temporaries of the largest role's optimiser while it updates."""
    sharded = isinstance(engine, DeepSpeedEngineConfig) and engine.zero_stage > 0
    trained: dict[str, int] = {}
    for part in parts:
        trained[part.role] = trained.get(part.role, 0) + part.trained
    role = max(trained, key=lambda name: trained[name])
    count = UPDATE_BYTES * trained[role] / (num_workers if sharded else 1)
    return Row(role, "update", "temporaries", count, _place(engine, "optimiser"))


def vae_row(shapes: NetworkPreset) -> Row:
    """Return the VAE that every rank holds for validation, in float32."""
    with torch.device("meta"):
        vae = build_autoencoder(shapes.vae)
    return Row("VAE", "autoencoder", "parameters", 4 * sum(p.numel() for p in vae.parameters()))


def decoding_rows(
    evaluation: EvaluationConfig, shapes: NetworkPreset, sample: Sample, num_clips: int
) -> tuple[Row, ...]:
    """Return what it takes to decode so many held-out clips at once.

    Estimated: three maps of the first width at full resolution, float32, over the frames and the
    tile that the autoencoder takes in one run.
    """
    bucket = evaluation.data.bucket
    frames = min(bucket.num_frames, shapes.vae.frames_at_once or bucket.num_frames)
    tile = shapes.vae.tile_px or max(bucket.height, bucket.width)
    maps = shapes.vae.first_width * frames * min(bucket.height, tile) * min(bucket.width, tile)
    if shapes.patch_decoder is not None:
        maps = shapes.patch_decoder.width * sample.frames * sample.height * sample.width
    return (Row("VAE", "decoding", "feature maps", num_clips * 3 * 4 * maps),)
