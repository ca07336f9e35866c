"""The VAE of HunyuanVideo-1.5: the shapes of diffusers' AutoencoderKLHunyuanVideo15."""

from typing import Any, ClassVar, Literal

from magicdistill.models.networks.autoencoder.base import VaeConfig, VaeFamily


class HunyuanVideo15VaeConfig(VaeConfig):
    """Arguments of diffusers' AutoencoderKLHunyuanVideo15 (compression 4 x 16 x 16).

    It takes all frames of a clip in one run, so that only tiles bound its memory, and one clip at
    a time: diffusers' mask of its attention has no place for a batch.
    """

    class_name: ClassVar = "AutoencoderKLHunyuanVideo15"
    space_compression: ClassVar = 16
    tile_px: ClassVar = 256

    kind: Literal["hunyuan-video-1.5"] = "hunyuan-video-1.5"
    block_out_channels: tuple[int, int, int, int, int]
    layers_per_block: int
    latent_channels: int = 32

    @classmethod
    def family(cls) -> type[VaeFamily]:
        """Return the answers about diffusers' network."""
        from magicdistill.models.networks.autoencoder.hunyuan_video15_network import (
            HunyuanVideo15Vae,
        )

        return HunyuanVideo15Vae

    def arguments(self) -> dict[str, Any]:
        """Return the shapes and the compression."""
        return {
            "spatial_compression_ratio": self.space_compression,
            "temporal_compression_ratio": self.time_compression,
            **self.model_dump(exclude={"kind"}),
        }

    @property
    def first_width(self) -> int:
        """The first level's channels."""
        return self.block_out_channels[0]
