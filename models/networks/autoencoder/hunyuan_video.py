"""The VAE of HunyuanVideo: the shapes of diffusers' AutoencoderKLHunyuanVideo."""

from typing import Any, ClassVar, Literal

from magicdistill.models.networks.autoencoder.base import VaeConfig, VaeFamily


class HunyuanVideoVaeConfig(VaeConfig):
    """Arguments of diffusers' AutoencoderKLHunyuanVideo (compression 4 x 8 x 8)."""

    class_name: ClassVar = "AutoencoderKLHunyuanVideo"
    frames_at_once: ClassVar = 17
    has_patch_code: ClassVar = True

    kind: Literal["hunyuan-video"] = "hunyuan-video"
    block_out_channels: tuple[int, int, int, int]
    layers_per_block: int
    norm_num_groups: int

    @classmethod
    def family(cls) -> type[VaeFamily]:
        """Return the answers about diffusers' network."""
        from magicdistill.models.networks.autoencoder.hunyuan_video_network import HunyuanVideoVae

        return HunyuanVideoVae

    def arguments(self) -> dict[str, Any]:
        """Return the shapes, with a block of each kind for every level."""
        levels = len(self.block_out_channels)
        return {
            "down_block_types": ("HunyuanVideoDownBlock3D",) * levels,
            "up_block_types": ("HunyuanVideoUpBlock3D",) * levels,
            **self.model_dump(exclude={"kind"}),
        }

    @property
    def first_width(self) -> int:
        """The first level's channels."""
        return self.block_out_channels[0]
