"""Where the first frame of a prompt without an image comes from."""

from typing import Annotated

import tyro

from magicdistill.models.config import Config
from magicdistill.models.paths import LocalFile, LocalPath


class PriorConfig(Config):
    """Sources of an image prior: a text-to-image pipeline, a corpus of images, or both."""

    text_to_image: Annotated[LocalPath | None, tyro.conf.arg(metavar="DIR|ID")] = None
    """Pipeline of diffusers that paints the first frame of a --prompt without an --image."""
    index: Annotated[LocalFile | None, tyro.conf.arg(metavar="IMAGES")] = None
    """Folder of images to take the first frame from; without a --prompt, they are only indexed.
    With --text_to_image those found are conditions of the painting."""
    clip: Annotated[LocalFile | None, tyro.conf.arg(metavar="DIR")] = None
    """CLIP-like model of transformers, by which --index compares images with the prompt."""
    ip_adapter: Annotated[LocalFile | None, tyro.conf.arg(metavar="FILE")] = None
    """Adapter by which --text_to_image attends to what --index found, its image_encoder beside it;
    by default the painting starts from the nearest image."""
    num_references: int = 4
    """Images of --index that the adapter attends to."""
    strength: float = 0.7
    """Without an adapter, how much of the nearest image is painted over, from 0 to 1."""
    image_steps: int | None = None
    """Steps of --text_to_image; by default the pipeline's own."""
    image_guidance: float | None = None
    """Guidance scale of --text_to_image; by default the pipeline's own."""

    def __bool__(self) -> bool:
        return self.text_to_image is not None or self.index is not None
