"""Wan: the shapes of diffusers' WanTransformer3DModel, and what they cost.

Closed forms in the number of tokens and the width d. The counts of saved tensors follow its blocks
under attention that keeps no matrix of scores; the tests compare them with what autograd saves.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from magicdistill.models.networks.backbones.base import Backbone, BackboneConfig, Sample
from magicdistill.models.networks.backbones.costs import BlockCosts, Gradient, Part
from magicdistill.models.networks.backbones.wan.layout import (
    NUM_IMAGE_TOKENS,
    NUM_TEXT_TOKENS,
    STOCK_CALL,
    num_feature_blocks,
)
from magicdistill.models.networks.config import demand_share

SAVED: dict[Gradient, int] = {"none": 0, "inputs": 12, "lora": 15, "weights": 22}
"""Tensors that a block keeps, in units of the video's tokens * d, those of the MLP left out."""
FLOAT_SAVED: dict[Gradient, int] = {"none": 0, "inputs": 6, "lora": 6, "weights": 12}
"""How many of them are in float32 whatever the weights are: those around the normalisations."""
WIDE_SAVED: dict[Gradient, int] = {"none": 0, "inputs": 1, "lora": 2, "weights": 2}
"""The same inside the MLP, in units of the video's tokens * its width."""
CONTEXT_SAVED: dict[Gradient, int] = {"none": 0, "inputs": 2, "lora": 3, "weights": 4}
"""The same of the keys and values of text and image, in units of their tokens * d."""
CONTEXT_FLOAT_SAVED: dict[Gradient, int] = {"none": 0, "inputs": 0, "lora": 1, "weights": 2}
IMAGE_SAVED: dict[Gradient, int] = {"none": 0, "inputs": 1, "lora": 2, "weights": 2}
"""What attention to the image adds, in units of the video's tokens * d."""
OUTPUT_SAVED: dict[Gradient, int] = {"none": 0, "inputs": 1, "lora": 0, "weights": 3}
"""The same of the transformer's last normalisation and projection; with a LoRA, the first block
keeps as much less, as its input has no gradient."""
OUTPUT_FLOAT_SAVED: dict[Gradient, int] = {"none": 0, "inputs": 1, "lora": 1, "weights": 2}
VIDEO_LORA, CONTEXT_LORA = 8, 2
"""Number of linears with a LoRA that a token of the video, and one of text or image, goes through
in a block."""
NUM_STATISTICS = 9
"""Numbers that normalisations keep for a token."""


class WanConfig(BackboneConfig):
    """Arguments of diffusers' WanTransformer3DModel, image-to-video input layout."""

    class_name: ClassVar = "WanTransformer3DModel"
    pipeline: ClassVar = "WanImageToVideoPipeline"
    stock_call: ClassVar = STOCK_CALL
    lora_targets: ClassVar = (  # the embeddings and the final projection stay out
        r"blocks\.\d+\.attn[12]\.(to_[qkv]|to_out\.0|add_[kv]_proj)",
        r"blocks\.\d+\.ffn\.net\.(0\.proj|2)",
    )

    kind: Literal["wan"] = "wan"
    num_attention_heads: int
    attention_head_dim: int
    num_layers: int
    ffn_dim: int
    """Width inside the MLP of a block."""
    freq_dim: int = 256
    """Width of the sinusoids of the timestep."""
    image_dim: int | None = None
    """Width of CLIP's tokens of the first frame (Wan 2.1); null takes none (Wan 2.2)."""
    pooled_projection_dim: int = 0
    num_text_tokens: int = NUM_TEXT_TOKENS

    @classmethod
    def backbone(cls) -> type[Backbone]:
        """Return the answers about diffusers' network."""
        from magicdistill.models.networks.backbones.wan.network import Wan

        return Wan

    def arguments(self) -> dict[str, Any]:
        """Return the image-to-video layout: the input is [noisy C | mask 4 | image prior C]."""
        return {
            "patch_size": self.patch,
            "in_channels": 2 * self.latent_channels + 4,
            "out_channels": self.latent_channels,
            "text_dim": self.text_embed_dim,
            "num_attention_heads": self.num_attention_heads,
            "attention_head_dim": self.attention_head_dim,
            "num_layers": self.num_layers,
            "ffn_dim": self.ffn_dim,
            "freq_dim": self.freq_dim,
            "image_dim": self.image_dim,
            "added_kv_proj_dim": self.model_dim if self.image_dim else None,
        }

    @property
    def model_dim(self) -> int:
        """The width of all heads."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def joined_text_tokens(self) -> int:
        """The blocks attend to the text, and carry the video alone."""
        return 0

    @property
    def demands_image_tokens(self) -> bool:
        """Wan 2.1 attends to CLIP's tokens."""
        return self.image_dim is not None

    @classmethod
    def image_token_stride(cls, config: Mapping[str, Any]) -> int | None:
        """All of CLIP's tokens are kept in Wan 2.1; Wan 2.2 takes none."""
        return 1 if config.get("image_dim") else None

    @property
    def num_image_tokens(self) -> int:
        """Tokens of the first frame that the blocks attend to."""
        return NUM_IMAGE_TOKENS if self.image_dim else 0

    def blocks(self, sample: Sample, part: Part, gradient: Gradient) -> tuple[BlockCosts, ...]:
        """Return the blocks before the discriminator's features and the like ones after."""
        first = num_feature_blocks(self.num_layers)
        counts = {
            "all": (first, self.num_layers - first),
            "features": (first, 0),
            "discriminator": (0, 1),
        }
        return tuple(self._block(sample, count, gradient) for count in counts[part])

    def _block(self, sample: Sample, count: int, gradient: Gradient) -> BlockCosts:
        """Return the costs of equal blocks.

        A token of the video goes through 4 d^2 weights of its own attention, 2 d^2 of that to text
        and image, whose tokens go through 2 d^2 on every rank, and through the MLP.
        """
        d, size, heads = self.model_dim, sample.activation_bytes, self.num_attention_heads
        tokens, own, wide = sample.video_tokens, sample.own_tokens, self.ffn_dim / self.model_dim
        context = NUM_TEXT_TOKENS + self.num_image_tokens
        held = context * sample.sequence_parallel
        num_attentions = 3 if self.image_dim else 2
        more = 4 / size - 1  # of a tensor that is in float32
        images = IMAGE_SAVED[gradient] if self.image_dim else 0
        kept = sample.units(SAVED[gradient] + images + FLOAT_SAVED[gradient] * more)
        kept += sample.units(WIDE_SAVED[gradient] * wide)
        kept += (
            (CONTEXT_SAVED[gradient] + CONTEXT_FLOAT_SAVED[gradient] * more) * context * d * size
        )
        if gradient != "none":
            kept += 4 * own * (num_attentions * heads + NUM_STATISTICS)
        if gradient == "lora":
            kept += (VIDEO_LORA * own + CONTEXT_LORA * context) * sample.lora_rank * size
        return BlockCosts(
            count,
            linear=2 * d**2 * ((6 + 2 * wide) * tokens + 2 * held),
            attention=4 * d * tokens * (tokens + context),
            saved_bytes=kept,
            attention_bytes=num_attentions * own * (d * size + 4 * heads),
            lora=2 * sample.lora_rank * d * ((12 + 2 + 2 * wide) * tokens + 4 * held),
        )

    def ends_bytes(self, sample: Sample, part: Part, gradient: Gradient) -> float:
        """Return what rotary phases, patch embedding, text embedding and output keep."""
        size, d = sample.activation_bytes, self.model_dim
        kept = 2 * 4 * self.attention_head_dim * sample.video_tokens / sample.sequence_parallel
        if gradient != "lora":  # the patch embedding's input, before the sequence is split
            _, height, width = self.patch
            channels = 2 * self.latent_channels + 4
            kept += channels * height * width * sample.video_tokens * size
        if gradient == "weights":
            kept += NUM_TEXT_TOKENS * (self.text_embed_dim + 2 * d) * size
            kept += self.num_image_tokens * d * (4 + size)
        if part == "all":
            more = OUTPUT_FLOAT_SAVED[gradient] * (4 / size - 1)
            kept += sample.units(OUTPUT_SAVED[gradient] + more)
        return kept

    def context_bytes(self, sample: Sample, part: Part, gradient: Gradient) -> float:
        """Return the embedded text and image, to which all blocks attend.

        A gradient through the frozen discriminator keeps what its features have kept already.
        """
        if (part, gradient) == ("discriminator", "inputs"):
            return 0.0
        tokens = NUM_TEXT_TOKENS + self.num_image_tokens
        return float(tokens * self.model_dim * sample.activation_bytes)

    def shallow(self) -> "WanConfig":
        """Return the shapes with one block before the features and one after."""
        return self.model_copy(update={"num_layers": 2})

    def demand_split(self, size: int) -> None:
        """Attention shares the heads."""
        demand_share("attention heads", self.num_attention_heads, size)

    @classmethod
    def image_layout(cls, config: Mapping[str, Any]) -> str | None:
        """Return the one layout; raises ValueError for a network without it."""
        from magicdistill.models.networks.backbones.wan.files import demand_image_to_video

        demand_image_to_video(config)
        return "masked_concat"
