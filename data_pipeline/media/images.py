"""Read pictures: the one place where what a picture file stores becomes RGB that a screen shows."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms, ImageOps

BACKGROUND = "white"
"""Colour that shows through where a picture is transparent."""
TURNED = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""
ORIENTATION, BITS_PER_SAMPLE, PHOTOMETRIC = 0x0112, 258, 262
"""Tags of EXIF and TIFF."""
WHITE_IS_ZERO = 0
DIRECT = ("1", "L", "P", "RGB", "RGBX", "YCbCr", "HSV", "LAB", "CMYK")
"""Modes that Pillow itself converts to RGB by their range."""
TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")


class ImageError(Exception):
    """A picture cannot be read; the message names the file and the reason."""


class UnknownRangeError(Exception):
    """Nobody can tell which of a picture's numbers is white."""


def read_image(path: Path) -> UInt8[np.ndarray, "y x 3"]:
    """Return a picture as RGB, upright by its EXIF data and in sRGB by its colour profile.

    16-bit grey is divided by its range, floats count from 0 to 1, what is transparent shows
    BACKGROUND. Of an animation the first frame is read.

    Raises:
        ImageError: if the file does not exist, is no readable picture, or has numbers of which
            nobody knows what is white.
    """
    with _opened(path) as image:
        image.load()
        return np.asarray(_rgb(ImageOps.exif_transpose(image), image))


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height of the upright picture, from the header alone.

    Raises ImageError as `read_image` does.
    """
    with _opened(path) as image:
        width, height = image.size
        # a TIFF is turned already, and Pillow would decode a whole PNG to look for EXIF at its end
        has_exif = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
        turned = has_exif and image.getexif().get(ORIENTATION) in TURNED
        return (height, width) if turned else (width, height)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures, and of odd but harmless metadata
            with Image.open(path) as image:
                yield image
    except FileNotFoundError:
        raise ImageError(f"no image {path}") from None
    except UnknownRangeError as error:
        raise ImageError(f"{path}: {error}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path} is no picture that can be read: {error}") from None


def _rgb(pixels: Image.Image, file: Image.Image) -> Image.Image:
    """Convert upright pixels to RGB by what their file says about them."""
    if pixels.mode.startswith("I") or pixels.mode == "F":
        return _grey(np.asarray(pixels).astype(np.float64), file).convert("RGB")
    if pixels.mode in TRANSPARENT or pixels.has_transparency_data:
        ground = Image.new("RGBA", pixels.size, BACKGROUND)
        shown = Image.alpha_composite(ground, pixels.convert("RGBA"))
        return _in_srgb(shown.convert("RGB"), file)
    if pixels.mode not in DIRECT:
        raise UnknownRangeError(
            f"its pixels are of the kind {pixels.mode!r}, which cannot be converted: save it as a "
            "PNG or JPEG of 8 bits"
        )
    return _in_srgb(pixels, file)


def _grey(values: np.ndarray, file: Image.Image) -> Image.Image:
    """Bring one channel of more than 8 bits to 8 by its range."""
    shares = values / _white(values, file)
    if _tag(file, PHOTOMETRIC) == WHITE_IS_ZERO:
        shares = 1 - shares
    transparent = file.info.get("transparency")
    if isinstance(transparent, int):  # the one value that a grey PNG leaves out
        shares[values == transparent] = 1
    return Image.fromarray((255 * shares).round().astype(np.uint8))


def _white(values: np.ndarray, file: Image.Image) -> float:
    """Return the number that is white in a picture of one channel; raise where it is unknown."""
    if file.mode == "F":
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise UnknownRangeError(
                f"its pixels are floats from {values.min():g} to {values.max():g}: bring them to "
                "the range from 0 to 1, where 1 is white"
            )
        return 1.0
    if file.mode.startswith("I;16"):
        bits = _tag(file, BITS_PER_SAMPLE)
        return 2.0 ** (bits[0] if isinstance(bits, tuple) else 16) - 1
    if file.format == "PPM":  # Pillow brings these to 16 bits
        return 65535.0
    raise UnknownRangeError(
        "its pixels are integers of 32 bits, of which nobody knows what is white: save it with 8 "
        "or 16 bits"
    )


def _tag(file: Image.Image, tag: int) -> object:
    return getattr(file, "tag_v2", {}).get(tag)


def _in_srgb(pixels: Image.Image, file: Image.Image) -> Image.Image:
    """Convert pixels by the colour profile of their file, if it has one of their kind."""
    profile = file.info.get("icc_profile")
    if profile and pixels.mode in ("RGB", "CMYK"):
        with suppress(
            ImageCms.PyCMSError, OSError
        ):  # a damaged profile counts as none, as in browsers
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            srgb = ImageCms.createProfile("sRGB")
            if found := ImageCms.profileToProfile(pixels, source, srgb, outputMode="RGB"):
                return found
    return pixels.convert("RGB")
