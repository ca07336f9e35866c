"""Shapes of the networks: the named presets and the fields that make a preset."""

from typing import Literal

from pydantic import Field, field_validator

from magicdistill.models.config import Config
from magicdistill.models.paths import LocalPath


class TransformerConfig(Config):
    """Arguments of diffusers' HunyuanVideoTransformer3DModel, image-to-video input layout."""

    num_attention_heads: int
    attention_head_dim: int
    num_layers: int
    """Double-stream blocks."""
    num_single_layers: int
    num_refiner_layers: int
    rope_axes_dim: tuple[int, int, int]
    text_embed_dim: int
    pooled_projection_dim: int
    num_text_tokens: int
    latent_channels: int = 16
    guidance_embeds: bool = False


class VaeConfig(Config):
    """Arguments of diffusers' AutoencoderKLHunyuanVideo (compression 4 x 8 x 8)."""

    block_out_channels: tuple[int, int, int, int]
    layers_per_block: int
    norm_num_groups: int
    latent_channels: int = 16


class PatchDecoderConfig(Config):
    """Shape of the fast decoder that the tiny preset has beside the autoencoder's own."""

    latent_channels: int = 16
    width: int = 64
    num_blocks: int = 5


class NetworkPreset(Config):
    """The networks of one model size."""

    transformer: TransformerConfig
    vae: VaeConfig
    patch_decoder: PatchDecoderConfig | None = None


class Presets(dict[str, NetworkPreset]):
    """The presets by name: those of the project and those of plugins."""

    def register(self, name: str, preset: NetworkPreset) -> NetworkPreset:
        """Add a preset; raises ValueError if another one has the name."""
        if self.setdefault(name, preset) != preset:
            raise ValueError(f"preset {name} has other shapes already; choose another name")
        return preset


PRESETS = Presets()
PRESETS |= {
    "portrait-tiny": NetworkPreset(
        transformer=TransformerConfig(
            num_attention_heads=4,
            attention_head_dim=32,
            num_layers=2,
            num_single_layers=4,
            num_refiner_layers=1,
            rope_axes_dim=(8, 12, 12),
            text_embed_dim=64,
            pooled_projection_dim=64,
            num_text_tokens=4,
        ),
        vae=VaeConfig(block_out_channels=(8, 16, 32, 48), layers_per_block=1, norm_num_groups=4),
        patch_decoder=PatchDecoderConfig(),
    ),
    "nano": NetworkPreset(  # the heads of a sequence group of 8, and little else
        transformer=TransformerConfig(
            num_attention_heads=8,
            attention_head_dim=12,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            rope_axes_dim=(4, 4, 4),
            text_embed_dim=64,
            pooled_projection_dim=64,
            num_text_tokens=4,
        ),
        vae=VaeConfig(block_out_channels=(8, 16, 32, 48), layers_per_block=1, norm_num_groups=4),
        patch_decoder=PatchDecoderConfig(),
    ),
    "magic141-13b": NetworkPreset(
        transformer=TransformerConfig(
            num_attention_heads=24,
            attention_head_dim=128,
            num_layers=20,
            num_single_layers=40,
            num_refiner_layers=2,
            rope_axes_dim=(16, 56, 56),
            text_embed_dim=4096,
            pooled_projection_dim=768,
            num_text_tokens=256,
        ),
        vae=VaeConfig(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32
        ),
    ),
}


class LoraConfig(Config):
    """The low-rank branch that turns the frozen base into the fake score.

    Rank and targets are not in the paper.
    """

    rank: int = Field(default=16, ge=1)
    """Rank of the low-rank branch."""
    targets: tuple[str, ...] = (
        r"transformer_blocks\.\d+\.attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)",
        r"transformer_blocks\.\d+\.(ff|ff_context)\.net\.(0\.proj|2)",
        r"single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_mlp|proj_out)",
    )
    """Full-name patterns of linears with (b, n, d) input, so that a (b, 1, 1) strength broadcasts;
    the text refiner and the final projection stay out."""


AttentionKernel = Literal["sdpa", "flash", "flash3"]


class KernelsConfig(Config):
    """How the transformer's blocks are computed; what they compute stays the same."""

    attention: AttentionKernel = "sdpa"
    """Kernel of attention: `sdpa` lets torch choose; `flash` is torch's flash kernel or an error,
    bf16 on GPUs; `flash3` is the same from FlashAttention 3, which Hopper GPUs run and which is
    installed apart."""
    compile_blocks: bool = False
    """Compile the repeated blocks with torch.compile; the first cycles take minutes longer."""
    recompute_blocks: bool = False
    """Keep only the inputs of the blocks and compute them again in the backward (activation
    checkpointing): a fraction of the memory for a third more computation."""


def demand_share(what: str, count: int, size: int) -> None:
    """Raise ValueError where a sequence group of `size` ranks cannot share `count` things."""
    if count % size:
        fitting = [n for n in range(1, 17) if count % n == 0]
        raise ValueError(
            f"{count} {what} do not divide over cluster.sequence_parallel {size}: choose one of "
            f"{fitting}"
        )


class ModelConfig(Config):
    """The model of a recipe: a preset and where its weights are."""

    preset: str = "portrait-tiny"
    """Shapes of the networks: portrait-tiny, nano, magic141-13b, or a name that a plugin
    registers."""
    vae: LocalPath | None = None
    """Folder of the VAE."""
    teacher: LocalPath | None = None
    """Folder of the teacher transformer; null starts from random weights (pre-training)."""
    generator: LocalPath | None = None
    """Folder of the generator's first weights where distribution matching goes on from an earlier
    stage; null copies the teacher, as the paper does."""

    @field_validator("preset")
    @classmethod
    def _check_preset(cls, name: str) -> str:
        if name not in PRESETS:
            raise ValueError(f"no such preset; there are {', '.join(PRESETS)}")
        return name

    @property
    def shapes(self) -> NetworkPreset:
        """The preset's shapes."""
        return PRESETS[self.preset]
