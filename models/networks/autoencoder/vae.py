"""The video VAE, whose latents are normalised to about unit variance per channel."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from magicdistill.models.locations import CONFIG
from magicdistill.models.networks.autoencoder.base import VaeConfig
from magicdistill.models.networks.autoencoder.patch_decoder import PatchDecoder
from magicdistill.models.networks.autoencoder.registry import vae_named, vae_of
from magicdistill.models.networks.config import PatchDecoderConfig
from magicdistill.models.tensor_files import follow_umask, save_file

STATISTICS = "latent_statistics.safetensors"
"""File with `mean` and `std` of each latent channel."""
PATCH_DECODER = "patch_decoder"
"""Name of the two files of a patch decoder, weights and configuration, without suffix."""


def build_autoencoder(config: VaeConfig) -> ModelMixin:
    """Build diffusers' causal video VAE with random weights."""
    return config.family().network(**config.arguments())


class VideoVae(nn.Module):
    """Encodes pixels in [-1, 1] to latents of about unit variance per channel, and back.

    The channel mean and standard deviation are stored beside the weights. If there is a patch
    decoder, it replaces the autoencoder's own.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        autoencoder: ModelMixin,
        mean: Float[Tensor, " c"] | None = None,
        std: Float[Tensor, " c"] | None = None,
        patch_decoder: PatchDecoder | None = None,
    ) -> None:
        super().__init__()
        self.patch_decoder = patch_decoder
        config, family = autoencoder.config, vae_of(autoencoder)
        channels = config[family.channels_key]
        self.family, self.pads_prior = family.family(), family.pads_prior
        self.time_compression, self.space_compression = self.family.compression(config)
        self.autoencoder: Any = autoencoder
        self.register_buffer("mean", torch.zeros(channels) if mean is None else mean)
        self.register_buffer("std", torch.ones(channels) if std is None else std)
        if family.tile_px is not None:
            self.autoencoder.enable_slicing()  # tiles and single clips are what bounds its memory
            self.enable_tiling(tile_px=family.tile_px, overlap_px=family.tile_px // 4)

    def encode(self, pixels: Float[Tensor, "b 3 t y x"]) -> Float[Tensor, "b c f h w"]:
        """Return the posterior mean, normalised.

        t is 4k+1; y and x are multiples of 8, or what else the network compresses by.
        """
        frames, height, width = pixels.shape[2:]
        time, space = self.time_compression, self.space_compression
        if frames % time != 1 or height % space or width % space:
            raise ValueError(
                f"clips need {time}k+1 frames and sides in multiples of {space}, got {frames} "
                f"frames of {height}x{width}"
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
        its stride is no multiple of a latent's pixels.
        """
        stride_px, space = tile_px - overlap_px, self.space_compression
        if tile_px % space or stride_px % space or not 0 < stride_px <= tile_px:
            raise ValueError(
                f"tiles of {tile_px} pixels that overlap by {overlap_px}: both need to be "
                f"multiples of {space}, and the overlap smaller than the tile"
            )
        self.autoencoder.enable_tiling(**self.family.tiling(tile_px, stride_px, space))

    def denormalise(self, latents: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b c f h w"]:
        """Return latents in the autoencoder's own scale."""
        return latents * self._channels(self.std) + self._channels(self.mean)

    @property
    def decoder(self) -> nn.Module:
        """The module that turns latents in the autoencoder's own scale into unclamped pixels."""
        if self.patch_decoder is not None:
            return self.patch_decoder
        return self.family.decoder(self.autoencoder)

    def image_prior(
        self,
        pixels: Float[Tensor, "b 3 t y x"],
        latents: Float[Tensor, "b c k h w"],
        num_frames: int,
    ) -> Float[Tensor, "b c f h w"]:
        """Return what a clip of so many frames is conditioned on, normalised.

        `pixels` begin with its first frame, and `latents` are theirs. It is their first latent
        frame, or for networks that expect it the latents of the first frame and gray frames after
        it: f is 1, or all latent frames.
        """
        if not self.pads_prior:
            return latents[:, :, :1]
        first = pixels[:, :, :1]
        gray = torch.zeros_like(first).expand(-1, -1, num_frames - 1, -1, -1)
        return self.encode(torch.cat([first, gray], dim=2))

    def latent_frames(self, num_frames: int) -> int:
        """Return the latent frames of a clip."""
        return (num_frames - 1) // self.time_compression + 1

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

        The class that its configuration names decides the family. Without statistics beside the
        weights those of the configuration normalise: a mean and a standard deviation for each
        channel, or a scaling factor (0.476986 for HunyuanVideo).
        """
        directory = Path(directory)
        family = vae_named(json.loads((directory / CONFIG).read_text()).get("_class_name"))
        autoencoder = family.family().network.from_pretrained(directory, torch_dtype=torch.float32)
        mean, std = cls.statistics_of(autoencoder)
        if (directory / STATISTICS).is_file():
            mean, std = map(load_file(directory / STATISTICS).get, ("mean", "std"))
        return cls(autoencoder, mean, std, _load_patch_decoder(directory)).eval()

    @staticmethod
    def statistics_of(autoencoder: ModelMixin) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        """Return mean and standard deviation of the latents, by diffusers' configuration."""
        family, config = vae_of(autoencoder), autoencoder.config
        return family.family().statistics(config, config[family.channels_key])

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
