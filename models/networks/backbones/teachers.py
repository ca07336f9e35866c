"""The published teachers, and the settings with which their makers sample them: one table.

docs/teachers.md shows it beside licences and files. A number that its source leaves open says so
there. Everything is without PyTorch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from magicdistill.models.networks.backbones.registry import find_family

HUNYUAN, HUNYUAN_15 = "HunyuanVideoTransformer3DModel", "HunyuanVideo15Transformer3DModel"
WAN = "WanTransformer3DModel"


@dataclass(frozen=True)
class Teacher:
    """One kind of published weights."""

    name: str
    network: str
    """Class of the network in diffusers."""
    num_steps: int
    shift: float
    source: str
    """Where the numbers are from."""
    layout: str | None = None
    """How the image enters, as the family says it; None for a family that has one way."""
    has_guidance_input: bool | None = None
    """Whether the network takes the guidance scale as an input; None where both are sampled
    alike."""
    embedded: float = 1.0
    """Guidance scale that such a network is given."""
    guidance: float = 1.0
    """Ho scale between the prompt and the null prompt, which takes a second forward; 1 is none."""
    image_start: float = 0.0
    """Share of the first frame's latents, in every frame, in the noise that sampling starts from:
    HunyuanVideo-I2V's stability."""
    needs: Mapping[str, Any] | None = None
    """Entries of config.json that tell it from others of the same class and layout."""
    max_pixels: int | None = None
    """Most pixels of a frame for which these numbers are; None for any."""
    is_published: bool = True
    clip: tuple[int, int, int, float] = (129, 544, 960, 24.0)
    """Frames, height, width and frames per second of its makers' videos, or those of Magic141."""

    def is_of(self, config: Mapping[str, Any], layout: str | None, pixels: int | None) -> bool:
        """Tell whether a configuration of diffusers, and the size of a frame, are of this kind."""
        embeds, needs = self.has_guidance_input, self.needs or {}
        return (
            self.is_published
            and config.get("_class_name") == self.network
            and self.layout in (None, layout)
            and embeds in (None, bool(config.get("guidance_embeds", False)))
            and all(config.get(name) == value for name, value in needs.items())
            and (self.max_pixels is None or (pixels or 0) <= self.max_pixels)
        )


TEACHERS = (
    Teacher(
        "Magic141",
        HUNYUAN,
        num_steps=28,
        shift=5.0,
        layout="latent_concat",
        source="002 section 4: 28 steps, and the grid of shift 5; the weights are not published",
        is_published=False,
    ),
    Teacher(
        "HunyuanVideo T2V",
        HUNYUAN,
        num_steps=50,
        shift=7.0,
        guidance=6.0,
        layout="text_to_video",
        has_guidance_input=False,
        source="Tencent-Hunyuan/HunyuanVideo: hyvideo/config, and the default scale of predict "
        "in hyvideo/inference for its model HYVideo-T/2",
    ),
    Teacher(
        "HunyuanVideo T2V-cfgdistill",
        HUNYUAN,
        num_steps=50,
        shift=7.0,
        embedded=6.0,
        layout="text_to_video",
        has_guidance_input=True,
        source="Tencent-Hunyuan/HunyuanVideo: hyvideo/config",
    ),
    Teacher(
        "HunyuanVideo-I2V latent_concat",
        HUNYUAN,
        num_steps=50,
        shift=17.0,
        layout="latent_concat",
        image_start=0.001,
        source="Tencent-Hunyuan/HunyuanVideo-I2V as of 2025-03-06: README (50 steps, shift 17, no "
        "scale) and prepare_latents (0.001 of the image); diffusers' example gives scale 1 too",
    ),
    Teacher(
        "HunyuanVideo-I2V token_replace",
        HUNYUAN,
        num_steps=50,
        shift=7.0,
        embedded=6.0,
        layout="token_replace",
        image_start=0.001,
        source="Tencent-Hunyuan/HunyuanVideo-I2V: README, with --i2v-stability; without it, for "
        "more motion, shift 17 and image_start 0",
    ),
    Teacher(
        "SkyReels-V1 I2V",
        HUNYUAN,
        num_steps=30,
        shift=7.0,
        embedded=1.0,
        guidance=6.0,
        layout="skyreels",
        source="SkyworkAI/SkyReels-V1: video_generate (30 steps, scales 6 and embedded 1); the "
        "scheduler of hunyuanvideo-community/HunyuanVideo, which it loads (shift 7)",
    ),
    Teacher(
        "HunyuanVideo-1.5 I2V 480p",
        HUNYUAN_15,
        num_steps=50,
        shift=5.0,
        guidance=6.0,
        max_pixels=848 * 480,
        clip=(121, 480, 832, 24.0),
        source="Tencent-Hunyuan/HunyuanVideo-1.5: README, Optimal Inference Configurations",
    ),
    Teacher(
        "HunyuanVideo-1.5 I2V 720p",
        HUNYUAN_15,
        num_steps=50,
        shift=7.0,
        guidance=6.0,
        clip=(121, 720, 1280, 24.0),
        source="Tencent-Hunyuan/HunyuanVideo-1.5: README, Optimal Inference Configurations",
    ),
    Teacher(
        "Wan2.2-I2V-A14B",
        WAN,
        num_steps=40,
        shift=5.0,
        guidance=3.5,
        needs={"in_channels": 36, "image_dim": None},
        clip=(81, 720, 1280, 16.0),
        source="Wan-Video/Wan2.2: wan/configs/wan_i2v_A14B (both experts 3.5; the first works "
        "down to noise level 0.9)",
    ),
    Teacher(
        "Wan2.1-I2V-14B-480P",
        WAN,
        num_steps=40,
        shift=3.0,
        guidance=5.0,
        needs={"in_channels": 36},
        max_pixels=832 * 480,
        clip=(81, 480, 832, 16.0),
        source="Wan-Video/Wan2.1: generate, image to video at 832*480",
    ),
    Teacher(
        "Wan2.1-I2V-14B-720P",
        WAN,
        num_steps=40,
        shift=5.0,
        guidance=5.0,
        needs={"in_channels": 36},
        clip=(81, 720, 1280, 16.0),
        source="Wan-Video/Wan2.1: generate, image to video",
    ),
)
"""The first that fits counts."""


def find_teacher(config: Mapping[str, Any], pixels: int | None = None) -> Teacher | None:
    """Return the kind of the weights of a diffusers configuration; None for another one.

    `pixels` are those of a frame: some makers sample small frames in another way.
    """
    family = find_family(config.get("_class_name"))
    layout = None if family is None else (family.image_layout(config) or "text_to_video")
    return next((kind for kind in TEACHERS if kind.is_of(config, layout, pixels)), None)
