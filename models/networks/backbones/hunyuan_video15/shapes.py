"""HunyuanVideo-1.5: the shapes of diffusers' HunyuanVideo15Transformer3DModel, and what they cost.

All blocks are dual-stream ones, equal to HunyuanVideo's, whose counts of saved tensors they share.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from magicdistill.models.networks.backbones.base import Backbone, BackboneConfig, Sample
from magicdistill.models.networks.backbones.costs import BlockCosts, Gradient, Part
from magicdistill.models.networks.backbones.hunyuan_video.shapes import (
    DOUBLE_LORA,
    DOUBLE_LORA_WIDTH,
    DOUBLE_SAVED,
    OUTPUT_SAVED,
    REFINER_SAVED,
    block_bytes,
)
from magicdistill.models.networks.backbones.hunyuan_video15.layouts import (
    CONCAT,
    TASKS,
    image_layout,
    num_feature_blocks,
)
from magicdistill.models.networks.config import demand_share


class HunyuanVideo15Config(BackboneConfig):
    """Arguments of diffusers' HunyuanVideo15Transformer3DModel, image-to-video input layout.

    A plan counts the tokens of the prompt alone beside the video's: those of the image and of
    quoted words, 985 at most in the published model, are 2 of 100 tokens of its videos.
    """

    class_name: ClassVar = "HunyuanVideo15Transformer3DModel"
    pipeline: ClassVar = "HunyuanVideo15ImageToVideoPipeline"
    patch: ClassVar = (1, 1, 1)
    takes_glyphs: ClassVar = True
    forward_workspace: ClassVar = 16
    backward_workspace: ClassVar = {**BackboneConfig.backward_workspace, "inputs": 10, "weights": 0}
    lora_targets: ClassVar = (  # refiner, projections of conditions and final projection stay out
        r"transformer_blocks\.\d+\.attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)",
        r"transformer_blocks\.\d+\.(ff|ff_context)\.net\.(0\.proj|2)",
    )

    kind: Literal["hunyuan-video-1.5"] = "hunyuan-video-1.5"
    num_attention_heads: int
    attention_head_dim: int
    num_layers: int = Field(ge=2)
    """Dual-stream blocks."""
    num_refiner_layers: int
    rope_axes_dim: tuple[int, int, int]
    text_embed_2_dim: int
    """Width of ByT5's tokens, the glyphs of quoted words."""
    image_embed_dim: int
    """Width of SigLIP's tokens of the first frame."""
    target_size: int = 640
    """Side in pixels of the square whose area the pipeline's videos have."""
    pooled_projection_dim: int = 0
    latent_channels: int = 32

    @property
    def demands_image_tokens(self) -> bool:
        """SigLIP's tokens stand beside every prompt of the image-to-video weights."""
        return True

    @classmethod
    def image_token_stride(cls, config: Mapping[str, Any]) -> int | None:
        """All of SigLIP's tokens are kept."""
        return 1

    @classmethod
    def backbone(cls) -> type[Backbone]:
        """Return the answers about diffusers' network."""
        from magicdistill.models.networks.backbones.hunyuan_video15.network import HunyuanVideo15

        return HunyuanVideo15

    def arguments(self) -> dict[str, Any]:
        """Return the image-to-video layout: the input is [noisy C | image prior C | mask 1]."""
        left_out = {
            "kind",
            "latent_channels",
            "num_text_tokens",
            "pooled_projection_dim",
            "guidance_embeds",
        }
        return {
            "in_channels": 2 * self.latent_channels + 1,
            "out_channels": self.latent_channels,
            "task_type": TASKS[CONCAT],
            "use_meanflow": False,
            **self.model_dump(exclude=left_out),
        }

    @property
    def model_dim(self) -> int:
        """The width of all heads."""
        return self.num_attention_heads * self.attention_head_dim

    def blocks(self, sample: Sample, part: Part, gradient: Gradient) -> tuple[BlockCosts, ...]:
        """Return the blocks before the discriminator's features, and those after them."""
        before = num_feature_blocks(self.num_layers)
        counts = {
            "all": (before, self.num_layers - before),
            "features": (before, 0),
            "discriminator": (0, 1),
        }[part]
        saved = block_bytes(sample, gradient, DOUBLE_SAVED, DOUBLE_LORA, self.num_attention_heads)
        return tuple(
            sample.block(
                count,
                saved,
                num_heads=self.num_attention_heads,
                lora_width=DOUBLE_LORA_WIDTH,
            )
            for count in counts
        )

    def shallow(self) -> "HunyuanVideo15Config":
        """Return the shapes with one block before the features and one after them."""
        return self.model_copy(update={"num_layers": 2})

    @property
    def idle_parameters(self) -> str:
        """What the last block, and the discriminator's, makes of the text: nobody reads it."""
        last = self.num_layers - 1
        return (
            rf"(transformer_blocks\.{last}|discriminator\.block)\.(attn\.to_add_out|ff_context)\."
        )

    def ends_bytes(self, sample: Sample, part: Part, gradient: Gradient) -> float:
        """Return what rotary phases, patch embedding, text refiner and output keep."""
        size = sample.activation_bytes
        kept = 2 * 4 * self.attention_head_dim * sample.video_tokens / sample.sequence_parallel
        if gradient != "lora":  # the patch embedding's input, before the sequence is split
            kept += (2 * self.latent_channels + 1) * sample.video_tokens * size
        if part == "all":
            kept += sample.units(OUTPUT_SAVED[gradient])
        if gradient == "weights":
            text = self.num_text_tokens * self.model_dim * size
            kept += self.num_refiner_layers * REFINER_SAVED * text
        return kept

    def demand_split(self, size: int) -> None:
        """Attention shares the heads."""
        demand_share("attention heads", self.num_attention_heads, size)

    @classmethod
    def image_layout(cls, config: Mapping[str, Any]) -> str | None:
        """Return the layout's name; None for text-to-video."""
        return image_layout(config)
