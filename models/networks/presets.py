"""The named presets of networks, and the model that a recipe makes of one."""

from pydantic import field_validator

from magicdistill.models.config import Config
from magicdistill.models.networks.autoencoder.hunyuan_video import HunyuanVideoVaeConfig
from magicdistill.models.networks.autoencoder.hunyuan_video15 import HunyuanVideo15VaeConfig
from magicdistill.models.networks.autoencoder.registry import AnyVae
from magicdistill.models.networks.backbones.hunyuan_video.shapes import HunyuanVideoConfig
from magicdistill.models.networks.backbones.hunyuan_video15.shapes import HunyuanVideo15Config
from magicdistill.models.networks.backbones.registry import AnyBackbone
from magicdistill.models.networks.config import PatchDecoderConfig
from magicdistill.models.paths import LocalPath


class NetworkPreset(Config):
    """The networks of one model size."""

    transformer: AnyBackbone
    vae: AnyVae
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
        transformer=HunyuanVideoConfig(
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
        vae=HunyuanVideoVaeConfig(
            block_out_channels=(8, 16, 32, 48), layers_per_block=1, norm_num_groups=4
        ),
        patch_decoder=PatchDecoderConfig(),
    ),
    "nano": NetworkPreset(  # the heads of a sequence group of 8, and little else
        transformer=HunyuanVideoConfig(
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
        vae=HunyuanVideoVaeConfig(
            block_out_channels=(8, 16, 32, 48), layers_per_block=1, norm_num_groups=4
        ),
        patch_decoder=PatchDecoderConfig(),
    ),
    "magic141-13b": NetworkPreset(
        transformer=HunyuanVideoConfig(
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
        vae=HunyuanVideoVaeConfig(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32
        ),
    ),
    "hunyuan15-tiny": NetworkPreset(
        transformer=HunyuanVideo15Config(
            num_attention_heads=4,
            attention_head_dim=32,
            num_layers=6,
            num_refiner_layers=1,
            rope_axes_dim=(8, 12, 12),
            text_embed_dim=64,
            text_embed_2_dim=32,
            image_embed_dim=32,
            num_text_tokens=4,
        ),
        vae=HunyuanVideo15VaeConfig(block_out_channels=(8, 16, 32, 64, 64), layers_per_block=1),
    ),
    "hunyuan15-i2v-8b": NetworkPreset(
        transformer=HunyuanVideo15Config(
            num_attention_heads=16,
            attention_head_dim=128,
            num_layers=54,
            num_refiner_layers=2,
            rope_axes_dim=(16, 56, 56),
            text_embed_dim=3584,
            text_embed_2_dim=1472,
            image_embed_dim=1152,
            num_text_tokens=1000,
        ),
        vae=HunyuanVideo15VaeConfig(
            block_out_channels=(128, 256, 512, 1024, 1024), layers_per_block=2
        ),
    ),
}


class ModelConfig(Config):
    """The model of a recipe: a preset and where its weights are."""

    preset: str = "portrait-tiny"
    """Shapes of the networks: portrait-tiny, nano, magic141-13b, hunyuan15-tiny, hunyuan15-i2v-8b,
    or a name that a plugin registers."""
    vae: LocalPath | None = None
    """Folder of the VAE."""
    teacher: LocalPath | None = None
    """Folder of the teacher transformer; null starts from random weights (pre-training)."""
    teacher_layout: str | None = None
    """How the first frame enters a teacher that is one file, where its number of input channels
    does not tell: `text_to_video` or `token_replace` (HunyuanVideo-I2V as published), which have
    16 both. A folder's config.json tells it."""
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
