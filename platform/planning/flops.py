"""What a forward pass of the video transformer costs: operations, and bytes for its backward.

The backbone says what its blocks cost in closed forms; here are the passes through them. The tests
compare the bytes with what autograd saves, and the operations with what torch counts.
"""

import math
from dataclasses import replace

from magicdistill.data_pipeline.config import Bucket, Prompts
from magicdistill.models.methods.forward_passes import ForwardPass
from magicdistill.models.networks.autoencoder.base import VaeConfig
from magicdistill.models.networks.backbones.base import BackboneConfig, Sample
from magicdistill.models.networks.backbones.costs import BlockCosts, Gradient
from magicdistill.models.networks.config import Recompute
from magicdistill.models.networks.presets import NetworkPreset

BACKWARD: dict[Gradient, float] = {"none": 0, "inputs": 1, "lora": 1, "weights": 2}
"""Linear operations of a backward over those of a forward."""
ATTENTION_BACKWARD = 2.5
"""The same of attention, of which fused kernels compute the scores again: five products for two."""
NUM_LATENTS = 8
"""Latents in float32 that live during an update: noise, samples, predictions, noised ones."""
FRESH_LATENTS = 2
"""The same of a critic that makes a rollout of its own. Counted in rehearsals."""
HEAD_SAVED: dict[Gradient, int] = {"none": 0, "inputs": 2, "lora": 2, "weights": 4}
"""Tensors that the discriminator's head keeps, in units of tokens * d."""


def num_image_tokens(prompts: Prompts | None, shapes: BackboneConfig) -> int:
    """Return the image tokens before the text of a recipe's prompts."""
    stride = prompts.image_token_stride if prompts else None
    return math.ceil(shapes.max_image_tokens / stride) if stride else 0


def sample_of(bucket: Bucket, preset: NetworkPreset, **share: int) -> Sample:
    """Return the sample that a clip of a bucket's shape becomes."""
    vae = preset.vae
    return Sample(
        preset.transformer,
        frames=vae.latent_frames(bucket.num_frames),
        height=vae.latent_side(bucket.height),
        width=vae.latent_side(bucket.width),
        **share,
    )


def num_frames(sample: Sample, vae: VaeConfig) -> int:
    """Return the frames of the decoded video."""
    return (sample.frames - 1) * vae.time_compression + 1


def operations(sample: Sample, step: ForwardPass, *, recompute: Recompute) -> float:
    """Return the operations of a forward pass and its backward over the whole sample.

    A multiplication and an addition are two. Embeddings and modulation are left out.
    """
    mode = recompute_of(step, recompute)
    again, attends_again = mode != "none", mode == "full"
    has_backward = step.gradient != "none"

    def of_block(block: BlockCosts) -> float:
        linear = block.linear * (1 + again + BACKWARD[step.gradient])
        attention = block.attention * (1 + attends_again + ATTENTION_BACKWARD * has_backward)
        trained = step.gradient == "lora"
        return linear + attention + block.lora * (1 + again + has_backward + trained)

    blocks = sample.shapes.blocks(with_rank_of(step, sample), step.blocks, step.gradient)
    return sum(block.count * of_block(block) for block in blocks) * step.samples * step.repeats


def with_rank_of(step: ForwardPass, sample: Sample) -> Sample:
    """Return the sample with the rank of the LoRA, at any strength, in the blocks of a pass.

    The critic's is the sample's own, but for the discriminator's block; 0 where there is none.
    """
    is_branched = step.role == "critic" and step.blocks != "discriminator"
    return replace(sample, lora_rank=step.lora_rank or is_branched * sample.lora_rank)


def saved_bytes(sample: Sample, step: ForwardPass, *, recompute: Recompute) -> float:
    """Return the bytes that a rank keeps from a forward pass to its backward."""
    if step.gradient == "none":
        return 0
    sample = with_rank_of(step, sample)
    shapes, mode = sample.shapes, recompute_of(step, recompute)
    blocks = shapes.blocks(sample, step.blocks, step.gradient)
    if mode == "none":
        kept = sum(block.count * block.saved_bytes for block in blocks)
    else:
        attends = mode == "selective"
        kept = sum(
            block.count * (sample.units(1) + attends * block.attention_bytes) for block in blocks
        )
    if step.blocks == "discriminator":
        ends = sample.units(HEAD_SAVED[step.gradient])
    else:
        ends = shapes.ends_bytes(sample, step.blocks, step.gradient)
    context = shapes.context_bytes(sample, step.blocks, step.gradient)
    return step.samples * (kept + ends + context)


def forward_bytes(sample: Sample, step: ForwardPass, *, recompute: Recompute) -> float:
    """Return the bytes that the forward of the worst block needs for a while."""
    if step.gradient != "none" and recompute_of(step, recompute) == "none":
        return 0.0  # what it saves is more, and is counted with the backward
    return step.samples * sample.units(sample.shapes.forward_workspace)


def backward_bytes(sample: Sample, step: ForwardPass, *, recompute: Recompute) -> float:
    """Return the bytes that the backward of the worst block needs for a while, recomputed tensors
    included."""
    sample, block = with_rank_of(step, sample), 0.0
    shapes = sample.shapes
    if recompute_of(step, recompute) != "none":
        kinds = shapes.blocks(sample, step.blocks, step.gradient)
        block = max(kind.saved_bytes for kind in kinds if kind.count)
        block -= sample.units(1)  # its input, which is kept in any case
    return step.samples * (block + sample.units(shapes.backward_workspace[step.gradient]))


def recompute_of(step: ForwardPass, recompute: Recompute) -> Recompute:
    """Return what a pass recomputes: nothing without a backward."""
    return "none" if step.gradient == "none" else recompute
