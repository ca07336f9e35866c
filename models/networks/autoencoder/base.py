"""What a family of video VAEs says of its shapes, without PyTorch: recipes and plans ask it.

What it says of a network itself is in `family`.
"""

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from magicdistill.models.config import Config

if TYPE_CHECKING:
    from magicdistill.models.networks.autoencoder.family import VaeFamily
else:  # the module imports torch, which `--help` does without
    VaeFamily = Any


class VaeConfig(Config):
    """The shapes of a VAE of one family.

    A family of one's own is a subclass that names itself in a `Literal` and defines what is
    abstract here. All of them are causal: the first frame is a latent frame alone.
    """

    class_name: ClassVar[str]
    """Name of the network's class, which diffusers writes into config.json as `_class_name`."""
    time_compression: ClassVar[int] = 4
    """Frames of a latent frame, except of the first."""
    space_compression: ClassVar[int] = 8
    """Pixels of a latent's side."""
    channels_key: ClassVar[str] = "latent_channels"
    """Name of the number of latent channels in diffusers' configuration."""
    frames_at_once: ClassVar[int | None] = None
    """Frames that the network decodes in one run; None is all of a clip."""
    pads_prior: ClassVar[bool] = False
    """Whether networks over its latents are conditioned on those of a whole clip that is gray after
    the first frame, which the cache then holds beside a clip's own; else on the first latent frame
    alone."""
    tile_px: ClassVar[int | None] = None
    """Side of the tiles in which larger frames are encoded and decoded, clip by clip; None is whole
    frames of all clips."""
    has_patch_code: ClassVar[bool] = False
    """Whether a VAE can be trained from scratch: its encoder has a closed form (`patch_code`)."""

    kind: str
    """Name of the family, which decides the other fields."""
    latent_channels: int = 16

    @classmethod
    @abstractmethod
    def family(cls) -> type[VaeFamily]:
        """Return what the family answers about a network; imports PyTorch."""

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the network's class."""

    @property
    @abstractmethod
    def first_width(self) -> int:
        """Channels of the feature maps at the full resolution."""

    def latent_frames(self, num_frames: int) -> int:
        """Return the latent frames of a clip."""
        return (num_frames - 1) // self.time_compression + 1

    def latent_side(self, side_px: int) -> int:
        """Return the latents along a side of so many pixels."""
        return side_px // self.space_compression
