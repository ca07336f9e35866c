"""The VAE of Wan 2.1 and of Wan 2.2 A14B: the shapes of diffusers' AutoencoderKLWan."""

from typing import Any, ClassVar, Literal

from magicdistill.models.networks.autoencoder.base import VaeConfig, VaeFamily


class WanVaeConfig(VaeConfig):
    """Arguments of diffusers' AutoencoderKLWan (compression 4 x 8 x 8)."""

    class_name: ClassVar = "AutoencoderKLWan"
    channels_key: ClassVar = "z_dim"
    frames_at_once: ClassVar = 4
    pads_prior: ClassVar = True

    kind: Literal["wan"] = "wan"
    base_dim: int
    """Channels at the full resolution."""
    dim_mult: tuple[int, int, int, int] = (1, 2, 4, 4)
    """Channels of each level over `base_dim`."""
    num_res_blocks: int = 2
    """Residual blocks of each level."""

    @classmethod
    def family(cls) -> type[VaeFamily]:
        """Return the answers about diffusers' network."""
        from magicdistill.models.networks.autoencoder.wan_network import WanVae

        return WanVae

    def arguments(self) -> dict[str, Any]:
        """Return the shapes; mean and deviation of the latents are the published ones."""
        return {
            "base_dim": self.base_dim,
            "dim_mult": list(self.dim_mult),
            "num_res_blocks": self.num_res_blocks,
            "z_dim": self.latent_channels,
        }

    @property
    def first_width(self) -> int:
        """The first level's channels."""
        return self.base_dim
