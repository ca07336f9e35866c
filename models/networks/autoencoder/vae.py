"""The video VAE, whose latents are normalised to about unit variance per channel."""

import copy
import hashlib
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLHunyuanVideo
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from magicdistill.models.networks.autoencoder.patch_decoder import PatchDecoder
from magicdistill.models.networks.config import PatchDecoderConfig, VaeConfig
from magicdistill.models.tensor_files import follow_umask, save_file

STATISTICS = "latent_statistics.safetensors"
"""File with `mean` and `std` of each latent channel."""
PATCH_DECODER = "patch_decoder"
"""Name of the two files of a patch decoder, weights and configuration, without suffix."""


def build_autoencoder(config: VaeConfig) -> AutoencoderKLHunyuanVideo:
    """Build diffusers' causal video VAE with random weights: 4k+1 frames, 4 x 8 x 8 smaller."""
    levels = len(config.block_out_channels)
    return AutoencoderKLHunyuanVideo(
        down_block_types=("HunyuanVideoDownBlock3D",) * levels,
        up_block_types=("HunyuanVideoUpBlock3D",) * levels,
        **config.model_dump(),
    )


class VideoVae(nn.Module):
    """Encodes pixels in [-1, 1] to latents of about unit variance per channel, and back.

    The channel mean and standard deviation are stored beside the weights. If there is a patch
    decoder, it replaces the autoencoder's own.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        autoencoder: AutoencoderKLHunyuanVideo,
        mean: Float[Tensor, " c"] | None = None,
        std: Float[Tensor, " c"] | None = None,
        patch_decoder: PatchDecoder | None = None,
    ) -> None:
        super().__init__()
        self.patch_decoder = patch_decoder
        channels = autoencoder.config["latent_channels"]
        self.autoencoder = autoencoder
        self.register_buffer("mean", torch.zeros(channels) if mean is None else mean)
        self.register_buffer("std", torch.ones(channels) if std is None else std)

    def encode(self, pixels: Float[Tensor, "b 3 t y x"]) -> Float[Tensor, "b c f h w"]:
        """Return the posterior mean, normalised. t is 4k+1; y and x are multiples of 8."""
        frames, height, width = pixels.shape[2:]
        if frames % 4 != 1 or height % 8 or width % 8:
            raise ValueError(
                f"clips need 4k+1 frames and sides in multiples of 8, got {frames} frames of "
                f"{height}x{width}"
            )
        posterior = self.autoencoder.encode(pixels, return_dict=False)[0]
        latents = posterior.mode()
        return (latents - self._channels(self.mean)) / self._channels(self.std)

    def decode(self, latents: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b 3 t y x"]:
        """Return pixels clamped to [-1, 1]."""
        latents = self.denormalise(latents)
        if self.patch_decoder is not None:
            return self.patch_decoder(latents).clamp(-1, 1)
        return self.autoencoder.decode(latents, return_dict=False)[0].clamp(-1, 1)

    def enable_tiling(self, *, tile_px: int = 256, overlap_px: int = 64) -> None:
        """Encode and decode in overlapping square tiles, blended, which bounds memory.

        Long clips are always processed in blended groups of frames. Raises ValueError if a tile or
        its stride is no multiple of 8.
        """
        stride_px = tile_px - overlap_px
        if tile_px % 8 or stride_px % 8 or not 0 < stride_px <= tile_px:
            raise ValueError(
                f"tiles of {tile_px} pixels that overlap by {overlap_px}: both need to be "
                "multiples of 8, and the overlap smaller than the tile"
            )
        self.autoencoder.enable_tiling(
            tile_sample_min_height=tile_px,
            tile_sample_min_width=tile_px,
            tile_sample_stride_height=stride_px,
            tile_sample_stride_width=stride_px,
        )

    def denormalise(self, latents: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b c f h w"]:
        """Return latents in the autoencoder's own scale."""
        return latents * self._channels(self.std) + self._channels(self.mean)

    @property
    def decoder(self) -> nn.Module:
        """The module that turns latents in the autoencoder's own scale into unclamped pixels."""
        if self.patch_decoder is not None:
            return self.patch_decoder
        return nn.Sequential(self.autoencoder.post_quant_conv, self.autoencoder.decoder)

    def save(self, directory: Path | str) -> None:
        """Write a diffusers folder plus statistics and patch decoder; weights in float16."""
        directory = Path(directory)
        copy.deepcopy(self.autoencoder).half().save_pretrained(directory)
        forget_origin(directory / "config.json")
        save_file({"mean": self.mean, "std": self.std}, directory / STATISTICS)
        if self.patch_decoder is not None:
            weights = {k: v.half() for k, v in self.patch_decoder.state_dict().items()}
            save_file(weights, directory / f"{PATCH_DECODER}.safetensors")
            (directory / f"{PATCH_DECODER}.json").write_text(
                self.patch_decoder.config.model_dump_json(indent=2)
            )
        follow_umask(directory)

    @classmethod
    def load(cls, directory: Path | str) -> "VideoVae":
        """Load a folder written by `save`, or by diffusers, in float32 and evaluation mode.

        Without statistics beside the weights the scaling factor of the configuration normalises
        (0.476986 for HunyuanVideo): latents times it have about unit variance.
        """
        directory = Path(directory)
        autoencoder = AutoencoderKLHunyuanVideo.from_pretrained(
            directory, torch_dtype=torch.float32
        )
        statistics = _load_statistics(directory, autoencoder)
        return cls(autoencoder, **statistics, patch_decoder=_load_patch_decoder(directory)).eval()

    @property
    def fingerprint(self) -> str:
        """Hash of the encoder's weights and shape, for cache keys; the decoder is left out."""
        shape = {k: v for k, v in self.autoencoder.config.items() if not k.startswith("_")}
        digest = hashlib.sha256(json.dumps(shape, sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.state_dict().items()):
            if "decoder." not in name and "post_quant_conv." not in name:
                digest.update(name.encode())
                digest.update(tensor.float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    @staticmethod
    def _channels(values: Tensor) -> Tensor:
        return values.view(1, -1, 1, 1, 1)


def _load_statistics(directory: Path, autoencoder: AutoencoderKLHunyuanVideo) -> dict[str, Tensor]:
    if (directory / STATISTICS).is_file():
        return load_file(directory / STATISTICS)
    std = 1 / autoencoder.config["scaling_factor"]
    return {"std": torch.full((autoencoder.config["latent_channels"],), std)}


def forget_origin(path: Path) -> None:
    """Remove the path from which weights were loaded from a diffusers configuration file."""
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2) + "\n")


def _load_patch_decoder(directory: Path) -> PatchDecoder | None:
    path = directory / f"{PATCH_DECODER}.json"
    if not path.is_file():
        return None
    decoder = PatchDecoder(PatchDecoderConfig.model_validate_json(path.read_text()))
    decoder.load_state_dict(load_file(path.with_suffix(".safetensors")))
    return decoder
