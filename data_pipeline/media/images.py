"""Read pictures as RGB arrays."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps


class ImageError(Exception):
    """A picture cannot be read; the message names the file and the reason."""


def read_image(path: Path) -> UInt8[np.ndarray, "y x 3"]:
    """Return a picture as RGB, rotated upright by its EXIF data.

    Raises:
        ImageError: if the file does not exist or is no readable picture.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except FileNotFoundError:
        raise ImageError(f"no image {path}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path} is no picture that can be read: {error}") from None
