"""The named presets of networks, and the model that a recipe makes of one."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr, field_validator

from magicdistill.models.config import Config
from magicdistill.models.locations import CONFIG, find_weights
from magicdistill.models.networks.autoencoder.hunyuan_video import HunyuanVideoVaeConfig
from magicdistill.models.networks.autoencoder.hunyuan_video15 import HunyuanVideo15VaeConfig
from magicdistill.models.networks.autoencoder.registry import AnyVae
from magicdistill.models.networks.autoencoder.wan import WanVaeConfig
from magicdistill.models.networks.backbones.hunyuan_video.shapes import HunyuanVideoConfig
from magicdistill.models.networks.backbones.hunyuan_video15.shapes import HunyuanVideo15Config
from magicdistill.models.networks.backbones.registry import AnyBackbone
from magicdistill.models.networks.backbones.wan.shapes import WanConfig
from magicdistill.models.networks.config import PatchDecoderConfig
from magicdistill.models.paths import LocalPath, PathError


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
    "wan-tiny": NetworkPreset(
        transformer=WanConfig(
            num_attention_heads=4,
            attention_head_dim=24,
            num_layers=4,
            ffn_dim=256,
            text_embed_dim=64,
        ),
        vae=WanVaeConfig(base_dim=8, num_res_blocks=1),
    ),
    "wan21-i2v-14b": NetworkPreset(
        transformer=WanConfig(
            num_attention_heads=40,
            attention_head_dim=128,
            num_layers=40,
            ffn_dim=13824,
            text_embed_dim=4096,
            image_dim=1280,
        ),
        vae=WanVaeConfig(base_dim=96),
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
PRESETS["hunyuan-i2v-13b"] = NetworkPreset(  # HunyuanVideo-I2V as published
    transformer=PRESETS["magic141-13b"].transformer.model_copy(
        update={"layout": "token_replace", "guidance_embeds": True}
    ),
    vae=PRESETS["magic141-13b"].vae,
)
PRESETS["wan22-i2v-14b"] = NetworkPreset(  # each of its two experts, which take no image tokens
    transformer=PRESETS["wan21-i2v-14b"].transformer.model_copy(update={"image_dim": None}),
    vae=PRESETS["wan21-i2v-14b"].vae,
)


class ModelConfig(Config):
    """The model of a recipe: a preset and where its weights are."""

    preset: str = "portrait-tiny"
    """Shapes of the networks: portrait-tiny, nano, magic141-13b, hunyuan-i2v-13b, wan-tiny,
    wan21-i2v-14b, wan22-i2v-14b, hunyuan15-tiny, hunyuan15-i2v-8b, or a name that a plugin
    registers."""
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
    other_expert: LocalPath | None = None
    """Folder of the network that predicts outside `method.interval` where videos are made while a
    run trains and where it is judged: the `model` folder of the other student's run. null is the
    teacher's other expert, which lies beside the teacher (transformer, transformer_2)."""

    @field_validator("preset")
    @classmethod
    def _check_preset(cls, name: str) -> str:
        if name not in PRESETS:
            raise ValueError(f"no such preset; there are {', '.join(PRESETS)}")
        return name

    _fitted: NetworkPreset | None = PrivateAttr(default=None)

    @property
    def shapes(self) -> NetworkPreset:
        """The preset's shapes, with what the teacher's weights decide of the network's inputs.

        Weights that do not fit the preset change nothing; they are refused before a run.
        """
        if self._fitted is not None:
            return self._fitted
        preset, found = PRESETS[self.preset], self.teacher_config
        if found is None or found.get("_class_name") != preset.transformer.class_name:
            return preset
        try:
            shapes = preset.transformer.of_weights(found)
        except (KeyError, ValueError):
            return preset
        return preset.model_copy(update={"transformer": shapes})

    @property
    def teacher_config(self) -> dict[str, Any] | None:
        """The diffusers configuration of the teacher, also of one in a file.

        None where there is no teacher, or its file leaves a question.
        """
        if self.teacher is None:
            return None
        try:
            path = find_weights(self.teacher, "model.teacher")
        except (FileNotFoundError, PathError):
            return None
        if path.is_dir():
            return json.loads((path / CONFIG).read_text())
        return _config_of_file(path, path.stat().st_mtime_ns, self.preset, self.teacher_layout)

    @property
    def takes_guidance(self) -> bool:
        """Whether the generator's first weights take the guidance scale as an input."""
        own = self
        if self.generator is not None:
            own = self.model_copy(update={"teacher": self.generator, "teacher_layout": None})
        return own.shapes.transformer.guidance_embeds

    def without_weights(self) -> "ModelConfig":
        """Return the same shapes with random weights."""
        weights = ("vae", "teacher", "generator", "other_expert")
        model = self.model_copy(update=dict.fromkeys(weights))
        model._fitted = self.shapes
        return model


@cache
def _config_of_file(
    path: Path, mtime_ns: int, preset: str, layout: str | None
) -> dict[str, Any] | None:
    from magicdistill.models.networks.state_dicts import checkpoint_config  # imports torch

    shapes = PRESETS[preset].transformer
    try:
        return {"_class_name": shapes.class_name} | checkpoint_config(path, shapes, layout)[1]
    except ValueError:
        return None
