"""HunyuanVideo: the shapes of diffusers' HunyuanVideoTransformer3DModel, and what they cost.

Closed forms in the number of tokens and the width d. The counts of saved tensors follow its blocks
under attention that keeps no matrix of scores; the tests compare them with what autograd saves.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from magicdistill.models.networks.backbones.base import Backbone, BackboneConfig, Sample
from magicdistill.models.networks.backbones.costs import BlockCosts, Gradient, Part
from magicdistill.models.networks.backbones.hunyuan_video.layouts import (
    CONCAT,
    LAYOUTS,
    SKYREELS,
    condition_type,
    image_layout,
)
from magicdistill.models.networks.config import demand_share

SKYREELS_PIPELINE = "HunyuanSkyreelsImageToVideoPipeline"
DOUBLE_SAVED: dict[Gradient, int] = {"none": 0, "inputs": 10, "lora": 16, "weights": 20}
"""Tensors that a double-stream block keeps, in units of tokens * d, except queries and keys."""
SINGLE_SAVED: dict[Gradient, int] = {"none": 0, "inputs": 9, "lora": 18, "weights": 20}
"""The same of a single-stream block."""
OUTPUT_SAVED: dict[Gradient, int] = {"none": 0, "inputs": 1, "lora": 1, "weights": 3}
"""The same of the transformer's last normalisation and projection."""
REFINER_SAVED = 18
"""The same of a block of the text refiner, in units of text tokens * d."""
DOUBLE_LORA, SINGLE_LORA = 6, 5
"""Number of linears with a LoRA that a token goes through in a block of each kind."""
DOUBLE_LORA_WIDTH, SINGLE_LORA_WIDTH = 18, 17
"""Sum of the widths of these linears, in and out, in units of d."""


class HunyuanVideoConfig(BackboneConfig):
    """Arguments of diffusers' HunyuanVideoTransformer3DModel, image-to-video input layout."""

    class_name: ClassVar = "HunyuanVideoTransformer3DModel"
    pipeline: ClassVar = "HunyuanVideoImageToVideoPipeline"
    lora_targets: ClassVar = (  # the text refiner and the final projection stay out
        r"transformer_blocks\.\d+\.attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)",
        r"transformer_blocks\.\d+\.(ff|ff_context)\.net\.(0\.proj|2)",
        r"single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_mlp|proj_out)",
    )

    max_image_tokens: ClassVar = 576  # LLaVA-Llama-3 sees 24 x 24 patches of 14 pixels
    weights_decide: ClassVar = ("in_channels", "image_condition_type", "guidance_embeds")

    kind: Literal["hunyuan-video"] = "hunyuan-video"
    num_attention_heads: int
    attention_head_dim: int
    num_layers: int
    """Double-stream blocks."""
    num_single_layers: int
    num_refiner_layers: int
    rope_axes_dim: tuple[int, int, int]
    layout: Literal["latent_concat", "token_replace", "skyreels"] = CONCAT
    """How the first frame enters."""

    @classmethod
    def backbone(cls) -> type[Backbone]:
        """Return the answers about diffusers' network."""
        from magicdistill.models.networks.backbones.hunyuan_video.network import HunyuanVideo

        return HunyuanVideo

    def arguments(self) -> dict[str, Any]:
        """Return the image-to-video layout: the input is [noisy C | image prior C | mask 1], or
        less of it.
        """
        return {
            "in_channels": self.input_channels,
            "out_channels": self.latent_channels,
            "image_condition_type": condition_type(self.layout),
            **self.model_dump(exclude={"kind", "latent_channels", "num_text_tokens", "layout"}),
        }

    @property
    def input_channels(self) -> int:
        """The channels of the layout."""
        per_latent, mask = LAYOUTS[self.layout]
        return per_latent * self.latent_channels + mask

    def of_weights(self, config: Mapping[str, Any]) -> "HunyuanVideoConfig":
        """The input follows the weights; that of text-to-video weights is widened."""
        found = {
            "layout": image_layout(config) or CONCAT,
            "guidance_embeds": bool(config.get("guidance_embeds", self.guidance_embeds)),
        }
        return self.model_copy(update=found)

    @property
    def model_dim(self) -> int:
        """The width of all heads."""
        return self.num_attention_heads * self.attention_head_dim

    def blocks(self, sample: Sample, part: Part, gradient: Gradient) -> tuple[BlockCosts, ...]:
        """Return the double-stream blocks and the single-stream blocks."""
        heads = self.num_attention_heads
        double, single = {
            "all": (self.num_layers, self.num_single_layers),
            "features": (self.num_layers, 0),
            "discriminator": (0, 1),
        }[part]
        return (
            sample.block(
                double,
                block_bytes(sample, gradient, DOUBLE_SAVED, DOUBLE_LORA, heads),
                num_heads=heads,
                lora_width=DOUBLE_LORA_WIDTH,
            ),
            sample.block(
                single,
                block_bytes(sample, gradient, SINGLE_SAVED, SINGLE_LORA, heads),
                num_heads=heads,
                lora_width=SINGLE_LORA_WIDTH,
            ),
        )

    def shallow(self) -> "HunyuanVideoConfig":
        """Return the shapes with one double-stream and one single-stream block."""
        return self.model_copy(update={"num_layers": 1, "num_single_layers": 1})

    def ends_bytes(self, sample: Sample, part: Part, gradient: Gradient) -> float:
        """Return what rotary phases, patch embedding, text refiner and output keep."""
        size = sample.activation_bytes
        rotary = 2 * 4 * self.attention_head_dim * sample.video_tokens / sample.sequence_parallel
        kept = rotary
        if gradient != "lora":  # the patch embedding's input, before the sequence is split
            _, height, width = self.patch
            kept += self.input_channels * height * width * sample.video_tokens * size
        if part == "all":
            kept += sample.units(OUTPUT_SAVED[gradient])
        if gradient == "weights":
            text = sample.context_tokens * self.model_dim * size
            kept += self.num_refiner_layers * REFINER_SAVED * text
        return kept

    def demand_split(self, size: int) -> None:
        """Attention shares the heads."""
        demand_share("attention heads", self.num_attention_heads, size)

    @classmethod
    def image_layout(cls, config: Mapping[str, Any]) -> str | None:
        """Return the layout's name; None for text-to-video."""
        return image_layout(config)

    @classmethod
    def sees_image(cls, config: Mapping[str, Any]) -> bool:
        """Text-to-video weights get channels for it that are zero, and have yet to learn it."""
        return image_layout(config) is not None

    @classmethod
    def image_token_stride(cls, config: Mapping[str, Any]) -> int | None:
        """Return 2 where the first frame enters by channels, 4 where it replaces a latent frame.

        Known: the default of diffusers' HunyuanVideoImageToVideoPipeline.
        """
        return {"latent_concat": 2, "token_replace": 4}.get(image_layout(config) or "")

    @classmethod
    def pipeline_of(cls, config: Mapping[str, Any]) -> str | None:
        """SkyReels-V1 has a pipeline of its own."""
        return SKYREELS_PIPELINE if image_layout(config) == SKYREELS else cls.pipeline


def block_bytes(
    sample: Sample,
    gradient: Gradient,
    counts: Mapping[Gradient, int],
    branches: int,
    num_heads: int,
) -> int | float:
    """Return the bytes that a block with joint attention keeps for its backward.

    `counts` are its tensors and `branches` its linears with a LoRA, as above. Queries and keys are
    normalised in float32: each keeps its input, and in bf16 a copy.
    """
    copy = 4 / sample.activation_bytes if sample.activation_bytes < 4 else 0
    normalised = 2 * (1 + copy + (gradient == "weights"))
    statistics = 12 * num_heads + 4 * sample.activation_bytes
    if gradient == "lora":
        statistics += branches * sample.lora_rank * sample.activation_bytes
    return sample.units(counts[gradient] + normalised) + sample.own_tokens * statistics
