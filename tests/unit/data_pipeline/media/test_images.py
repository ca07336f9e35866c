"""What a picture file stores becomes what a person sees, for jobs, page, curation and search."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from magicdistill.data_pipeline.media.images import ImageError, image_size, read_image
from magicdistill.data_pipeline.media.video import (
    PICTURE_SUFFIXES,
    VideoError,
    decode,
    probe,
    read_frames,
)

GREY16 = np.array([[0, 257, 32896, 65535]], np.uint16)
AS_GREY = [0, 1, 128, 255]
RED = [255, 0, 0]
WHITE = [255, 255, 255]
PINK = [255, 127, 127]
HALF = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [255, 0, 0, 128]]], np.uint8)
"""Red that is opaque, hidden and half transparent."""
OPAQUE = HALF[..., :3]


def palette(**options: Any) -> Callable[[Path], None]:
    """Return a writer of two pixels, red and black, of which the transparent one is red."""
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 0])
    image.putpixel((1, 0), 1)
    return lambda path: image.save(path, **options)


def of(values: np.ndarray, mode: str | None = None, **options: Any) -> Callable[[Path], None]:
    image = Image.fromarray(values)
    return lambda path: (image.convert(mode) if mode else image).save(path, **options)


def pgm(values: np.ndarray, white: int) -> Callable[[Path], object]:
    header = f"P5 {values.shape[1]} {values.shape[0]} {white}\n".encode()
    return lambda path: path.write_bytes(header + values.astype(">u2").tobytes())


READ = {
    "8-bit grey": ("png", of(np.array([[0, 1, 128, 255]], np.uint8)), AS_GREY),
    "black and white": ("png", of(np.array([[0, 255]], np.uint8), "1"), [0, 255]),
    "16-bit grey PNG": ("png", of(GREY16), AS_GREY),
    "16-bit grey TIFF": ("tiff", of(GREY16), AS_GREY),
    "16-bit grey TIFF, white is zero": ("tiff", of(GREY16, tiffinfo={262: 0}), [255, 254, 127, 0]),
    "16-bit grey PNG, one value transparent": (
        "png",
        of(GREY16, transparency=257),
        [0, 255, 128, 255],
    ),
    "16-bit PGM": ("pgm", pgm(GREY16, 65535), AS_GREY),
    "12-bit PGM": ("pgm", pgm(GREY16 // 16, 4095), [0, 1, 128, 255]),
    "float TIFF": ("tiff", of((GREY16 / 65535).astype(np.float32)), AS_GREY),
    "RGBA PNG": ("png", of(HALF), [RED, WHITE, PINK]),
    "RGBA TIFF": ("tiff", of(HALF), [RED, WHITE, PINK]),
    "RGBA WebP": ("webp", of(HALF, lossless=True, exact=True), [RED, WHITE, PINK]),
    "grey with alpha": ("png", of(HALF, "LA"), [76, 255, 165]),
    "RGB with a transparent colour": (
        "png",
        of(OPAQUE, transparency=(255, 0, 0)),
        [WHITE, WHITE, WHITE],
    ),
    "grey with a transparent value": (
        "png",
        of(np.array([[0, 9]], np.uint8), transparency=0),
        [255, 9],
    ),
    "palette": ("png", palette(), [RED, [0, 0, 0]]),
    "palette with a transparent colour": ("png", palette(transparency=0), [WHITE, [0, 0, 0]]),
    "palette with alpha": (
        "png",
        palette(transparency=bytes([127, 255])),
        [[255, 128, 128], [0] * 3],
    ),
    "GIF with a transparent colour": ("gif", palette(transparency=0), [WHITE, [0, 0, 0]]),
    "CMYK": ("tiff", of(OPAQUE, "CMYK"), [RED, RED, RED]),
    "CMYK JPEG": ("jpg", of(OPAQUE, "CMYK", quality=100), [RED, RED, RED]),
    "YCbCr": ("tiff", of(OPAQUE, "YCbCr"), [RED, RED, RED]),
    "a damaged colour profile": ("png", of(OPAQUE, icc_profile=b"no profile"), [RED, RED, RED]),
}


@pytest.mark.parametrize("kind", READ)
def test_every_kind_of_pixel_is_brought_to_eight_bits_by_its_range(kind: str, tmp_path: Path):
    suffix, write, expected = READ[kind]
    path = tmp_path / f"picture.{suffix}"
    write(path)
    row = np.array([[one] * 3 if isinstance(one, int) else one for one in expected])
    found = read_image(path)
    assert found.dtype == np.uint8 and found.shape == (1, len(row), 3)
    assert np.abs(found[0].astype(int) - row).max() <= 1, found


REFUSED = {
    "floats beyond white": ("tiff", of(np.array([[0, 7.5]], np.float32)), "floats from 0 to 7.5"),
    "floats below black": ("tiff", of(np.array([[-1, 1]], np.float32)), "floats from -1 to 1"),
    "no numbers": ("tiff", of(np.array([[np.nan, 1]], np.float32)), "floats from nan"),
    "32-bit integers": ("tiff", of(np.array([[0, 9]], np.int32)), "integers of 32 bits"),
    "text": ("png", lambda path: path.write_text("no picture"), "no picture that can be read"),
    "nothing": ("png", lambda path: None, "no image"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_converted_is_refused_by_name(kind: str, tmp_path: Path):
    suffix, write, reason = REFUSED[kind]
    path = tmp_path / f"picture.{suffix}"
    write(path)
    with pytest.raises(ImageError, match=rf"{path}.*{reason}|{reason}.*{path}"):
        read_image(path)


def test_a_colour_profile_is_followed(tmp_path: Path):
    """Of a profile in which red and green have changed places, red is shown as green."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"....", 1).replace(b"gXYZ", b"rXYZ", 1)
    swapped = swapped.replace(b"....", b"gXYZ", 1)
    for name, found, expected in (("a", profile, RED), ("b", swapped, [0, 255, 0])):
        path = tmp_path / f"{name}.png"
        Image.new("RGB", (1, 1), "red").save(path, icc_profile=found)
        assert np.abs(read_image(path)[0, 0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
def test_a_picture_stands_upright_wherever_it_is_read(orientation, suffix, tmp_path: Path):
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:4, :8] = 255  # the top left is white
    laid = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.ascontiguousarray(laid)).save(path, exif=exif)
    assert image_size(path) == (16, 8)
    found = read_image(path)
    assert np.abs(found.astype(int) - upright).mean() < 8
    if path.suffix in PICTURE_SUFFIXES:  # curation and evaluation
        header = probe(path)
        assert (header.width, header.height, header.num_frames) == (16, 8, 1)
        for frames in (decode(path), read_frames(path, [0])):
            assert [np.array_equal(frame, found) for frame in frames] == [True]


def test_the_size_is_read_without_decoding(tmp_path: Path):
    """A few bytes may claim any size: whoever limits it must not pay for it first."""
    Image.new("RGB", (2000, 1000)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: whole.index(b"IDAT") + 8])
    assert image_size(tmp_path / "a.png") == (2000, 1000)
    with pytest.raises(ImageError, match="truncated"):
        read_image(tmp_path / "a.png")


def test_a_curated_picture_that_cannot_be_converted_is_a_corrupt_clip(tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG no picture")
    for read in (
        lambda: probe(path),
        lambda: list(decode(path)),
        lambda: list(read_frames(path, [0])),
    ):
        with pytest.raises(VideoError, match=r"corrupt: .*a\.png"):
            read()
