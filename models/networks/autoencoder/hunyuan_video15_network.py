"""The VAE of HunyuanVideo-1.5: what its family answers about diffusers' network."""

from typing import Any

from diffusers import AutoencoderKLHunyuanVideo15

from magicdistill.models.networks.autoencoder.family import VaeFamily


class HunyuanVideo15Vae(VaeFamily):
    """diffusers' AutoencoderKLHunyuanVideo15; its latents times 1.03682 have about unit variance.

    Its encoder ends and its decoder begins beside a shortcut without weights, which leaves no
    place for other statistics than the factor's.
    """

    network = AutoencoderKLHunyuanVideo15

    @classmethod
    def tiling(cls, tile_px: int, stride_px: int, compression_px: int) -> dict[str, Any]:
        """Return the sides of tiles in pixels and in latents, and the share that overlaps.

        Raises ValueError for tiles that do not overlap, which diffusers takes for its default, and
        where it would round pixels and latents of the share to different places.
        """
        share, side = 1 - stride_px / tile_px, tile_px // compression_px
        whole = (tile_px - stride_px, stride_px)
        cuts = [(int(n * share), int(n * (1 - share))) for n in (tile_px, side)]
        if not share or cuts != [whole, tuple(n // compression_px for n in whole)]:
            raise ValueError(
                f"tiles of {tile_px} pixels that overlap by {whole[0]}: {cls.network.__name__} "
                "knows the share alone; give an overlap of a quarter or a half"
            )
        return {
            "tile_sample_min_height": tile_px,
            "tile_sample_min_width": tile_px,
            "tile_latent_min_height": side,
            "tile_latent_min_width": side,
            "tile_overlap_factor": share,
        }
