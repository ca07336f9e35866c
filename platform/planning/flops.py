"""What a forward pass of the video transformer costs: operations, and bytes for its backward.

Closed forms in the number of tokens and the width d. The counts of saved tensors follow the blocks
of diffusers' HunyuanVideo under attention that keeps no matrix of scores; the tests compare them
with what autograd saves, and the operations with what torch counts.
"""

from dataclasses import dataclass

from magicdistill.data_pipeline.config import Bucket
from magicdistill.models.methods.forward_passes import ForwardPass, Gradient
from magicdistill.models.networks.config import TransformerConfig

TIME_COMPRESSION, SPACE_COMPRESSION, PATCH_SIDE = 4, 8, 2
LINEAR_OPERATIONS = 24
"""Linear operations of a block, in units of tokens * d^2: twice its 12 d^2 weights per token."""
BACKWARD: dict[Gradient, float] = {"none": 0, "inputs": 1, "lora": 1, "weights": 2}
"""Linear operations of a backward over those of a forward; attention always has twice."""
DOUBLE_SAVED: dict[Gradient, int] = {"none": 0, "inputs": 10, "lora": 16, "weights": 20}
"""Tensors that a double-stream block keeps, in units of tokens * d, except queries and keys."""
SINGLE_SAVED: dict[Gradient, int] = {"none": 0, "inputs": 9, "lora": 18, "weights": 20}
"""The same of a single-stream block."""
HEAD_SAVED: dict[Gradient, int] = {"none": 0, "inputs": 2, "lora": 2, "weights": 4}
"""The same of the discriminator's head."""
OUTPUT_SAVED: dict[Gradient, int] = {"none": 0, "inputs": 1, "lora": 1, "weights": 3}
"""The same of the transformer's last normalisation and projection."""
REFINER_SAVED = 18
"""The same of a block of the text refiner, in units of text tokens * d."""
DOUBLE_LORA, SINGLE_LORA = 6, 5
"""Number of linears with a LoRA that a token goes through in a block of each kind."""
FORWARD_WORKSPACE, BACKWARD_WORKSPACE = 17, 13
"""Tensors of tokens * d that a block needs for a while, in addition to those it keeps. Measured
on a CPU for the block that needs most (single-stream, bf16), and rounded up."""


@dataclass(frozen=True)
class Sample:
    """One sample in the transformer, and the share of it that one rank holds."""

    shapes: TransformerConfig
    frames: int
    """Latent frames."""
    height: int
    """Latent height."""
    width: int
    """Latent width."""
    sequence_parallel: int = 1
    activation_bytes: int = 2
    """Bytes of one number."""
    lora_rank: int = 0

    @classmethod
    def of(cls, bucket: Bucket, shapes: TransformerConfig, **share: int) -> "Sample":
        """Return the sample that a clip of a bucket's shape becomes."""
        return cls(
            shapes,
            frames=(bucket.num_frames - 1) // TIME_COMPRESSION + 1,
            height=bucket.height // SPACE_COMPRESSION,
            width=bucket.width // SPACE_COMPRESSION,
            **share,
        )

    @property
    def num_frames(self) -> int:
        """Frames of the decoded video."""
        return (self.frames - 1) * TIME_COMPRESSION + 1

    @property
    def model_dim(self) -> int:
        """The width of the transformer."""
        return self.shapes.num_attention_heads * self.shapes.attention_head_dim

    @property
    def video_tokens(self) -> int:
        """Tokens of the whole video."""
        return self.frames * (self.height // PATCH_SIDE) * (self.width // PATCH_SIDE)

    @property
    def own_tokens(self) -> int:
        """Tokens that a rank holds: its share of the video's, and all of the longest text."""
        return self.video_tokens // self.sequence_parallel + self.shapes.num_text_tokens

    @property
    def latent_numel(self) -> int:
        """Numbers in the latents."""
        return self.shapes.latent_channels * self.frames * self.height * self.width

    def units(self, count: float) -> float:
        """Return the bytes of `count` tensors of a rank's tokens times the width d."""
        return count * self.own_tokens * self.model_dim * self.activation_bytes


def num_blocks(sample: Sample, step: ForwardPass) -> tuple[int, int]:
    """Return how many double-stream and single-stream blocks a forward pass goes through."""
    shapes = sample.shapes
    return {
        "all": (shapes.num_layers, shapes.num_single_layers),
        "double": (shapes.num_layers, 0),
        "discriminator": (0, 1),
    }[step.blocks]


def operations(sample: Sample, step: ForwardPass, *, recompute: bool) -> float:
    """Return the operations of a forward pass and its backward over the whole sample.

    A multiplication and an addition are two. Embeddings, modulation and LoRA (under 3 % at rank
    128) are left out.
    """
    tokens, d = sample.video_tokens + sample.shapes.num_text_tokens, sample.model_dim
    linear, attention = LINEAR_OPERATIONS * tokens * d**2, 4 * tokens**2 * d
    again = _recomputes(step, recompute=recompute)
    has_backward = step.gradient != "none"
    of_block = linear * (1 + again + BACKWARD[step.gradient])
    of_block += attention * (1 + again + 2 * has_backward)
    return of_block * sum(num_blocks(sample, step)) * step.samples * step.repeats


def saved_bytes(sample: Sample, step: ForwardPass, *, recompute: bool) -> float:
    """Return the bytes that a rank keeps from a forward pass to its backward."""
    if step.gradient == "none":
        return 0
    double, single = num_blocks(sample, step)
    if _recomputes(step, recompute=recompute):
        kept = sample.units(double + single)
    else:
        kept = double * double_block_bytes(sample, step.gradient)
        kept += single * single_block_bytes(sample, step.gradient)
    return step.samples * (kept + _ends_bytes(sample, step))


def workspace_bytes(sample: Sample, step: ForwardPass, *, recompute: bool) -> float:
    """Return the bytes that the worst block needs for a while, recomputed tensors included."""
    if step.gradient == "none":
        return step.samples * sample.units(FORWARD_WORKSPACE)
    block = 0.0
    if _recomputes(step, recompute=recompute):
        block = max(
            double_block_bytes(sample, step.gradient), single_block_bytes(sample, step.gradient)
        )
    return step.samples * (block + sample.units(BACKWARD_WORKSPACE))


def double_block_bytes(sample: Sample, gradient: Gradient) -> float:
    """Return what one double-stream block keeps for the backward of one sample."""
    return _block_bytes(sample, gradient, DOUBLE_SAVED[gradient], DOUBLE_LORA)


def single_block_bytes(sample: Sample, gradient: Gradient) -> float:
    """Return what one single-stream block keeps for the backward of one sample."""
    return _block_bytes(sample, gradient, SINGLE_SAVED[gradient], SINGLE_LORA)


def _recomputes(step: ForwardPass, *, recompute: bool) -> bool:
    """The discriminator's own block is never recomputed."""
    return recompute and step.gradient != "none" and step.blocks != "discriminator"


def _block_bytes(sample: Sample, gradient: Gradient, count: int, branches: int) -> float:
    """Queries and keys are normalised in float32: each keeps its input, and in bf16 the copy."""
    copy = 4 / sample.activation_bytes if sample.activation_bytes < 4 else 0
    normalised = 2 * (1 + copy + (gradient == "weights"))
    statistics = 12 * sample.shapes.num_attention_heads + 4 * sample.activation_bytes
    if gradient == "lora":
        statistics += branches * sample.lora_rank * sample.activation_bytes
    return sample.units(count + normalised) + sample.own_tokens * statistics


def _ends_bytes(sample: Sample, step: ForwardPass) -> float:
    """Embeddings and output projection, or the discriminator's head."""
    shapes, size = sample.shapes, sample.activation_bytes
    if step.blocks == "discriminator":
        return sample.units(HEAD_SAVED[step.gradient])
    rotary = 2 * 4 * shapes.attention_head_dim * sample.video_tokens / sample.sequence_parallel
    kept = rotary
    if step.gradient != "lora":  # the patch embedding's input, before the sequence is split
        channels = 2 * shapes.latent_channels + 1
        kept += channels * PATCH_SIDE**2 * sample.video_tokens * size
    if step.blocks == "all":
        kept += sample.units(OUTPUT_SAVED[step.gradient])
    if step.gradient == "weights":
        text = shapes.num_text_tokens * sample.model_dim * size
        kept += shapes.num_refiner_layers * REFINER_SAVED * text
    return kept
