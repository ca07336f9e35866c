"""From clips to what each metric network expects, as VBench and torchvision resize and crop."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor
from torch.nn import functional

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SIDE = 224
DINO_SIDE = 256
MUSIQ_SIDE = 512
CMMD_SIDE = 336
NUM_FRAMES = 16
"""Frames that a network sees at once."""


def in_parts(
    network: Callable[[Tensor], Tensor], frames: UInt8[Tensor, "t 3 y x"]
) -> Float[Tensor, "t ..."]:
    """Return what a network makes of frames, `NUM_FRAMES` at a time."""
    return torch.cat([network(part) for part in frames.split(NUM_FRAMES)])


def to_frames(pixels: Float[Tensor, "*b 3 t y x"]) -> UInt8[Tensor, "*b t 3 y x"]:
    """Return clips in [-1, 1] as 8-bit frames, which is what a video file would hold."""
    levels = (127.5 * (pixels + 1)).round().clamp(0, 255)
    return levels.to(torch.uint8).movedim(-4, -3)


def for_subject(frames: UInt8[Tensor, "b 3 y x"]) -> Float[Tensor, "b 3 v u"]:
    """Return DINO's input for subject consistency: short side 224, the aspect kept."""
    return _normalised(_short_side(frames, SIDE, "bilinear", antialias=False), IMAGENET)


def for_i2v_subject(frames: UInt8[Tensor, "b 3 y x"]) -> Float[Tensor, "b 3 224 224"]:
    """Return DINO's input for the i2v subject: short side 256, bicubic, centre crop."""
    return _normalised(
        _cropped(_short_side(frames, DINO_SIDE, "bicubic", antialias=True)), IMAGENET
    )


def for_clip(frames: UInt8[Tensor, "b 3 y x"]) -> Float[Tensor, "b 3 224 224"]:
    """Return CLIP's input: short side 224, bicubic, centre crop."""
    return _normalised(_cropped(_short_side(frames, SIDE, "bicubic", antialias=False)), CLIP)


def for_cmmd(frames: UInt8[Tensor, "b 3 y x"]) -> Float[Tensor, "b 3 336 336"]:
    """Return CMMD's input of CLIP: the middle square, 336 px, bicubic."""
    height, width = frames.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = frames[..., top : top + side, left : left + side].float()
    return _normalised(_resized(square, (CMMD_SIDE, CMMD_SIDE), "bicubic", antialias=True), CLIP)


def for_videomae(frames: UInt8[Tensor, "t 3 y x"]) -> Float[Tensor, "w 3 16 224 224"]:
    """Return VideoMAE's input: windows of 16 frames, 224 x 224 whatever the aspect, bilinear."""
    images = _resized(frames.float(), (SIDE, SIDE), "bilinear", antialias=False)
    return windows(_normalised(images, IMAGENET), NUM_FRAMES).movedim(2, 1)


def windows(frames: Shaped[Tensor, "t 3 y x"], length: int | None) -> Shaped[Tensor, "w l 3 y x"]:
    """Return the windows of that many frames, one after another; the rest at the end is left out.

    None, or a clip that is shorter, is the whole clip as one window.
    """
    length = min(length or len(frames), len(frames))
    count = len(frames) // length
    return frames[: count * length].unflatten(0, (count, length))


def for_musiq(frames: UInt8[Tensor, "b 3 y x"]) -> Float[Tensor, "b 3 v u"]:
    """Return MUSIQ's input: [0, 1], the long side at most 512."""
    height, width = frames.shape[-2:]
    scale = MUSIQ_SIDE / max(height, width)
    if scale >= 1:
        return frames / 255
    size = (int(scale * height), int(scale * width))
    return _resized(frames.float(), size, "bilinear", antialias=False) / 255


def padding(height: int, width: int, multiple: int) -> tuple[int, int, int, int]:
    """Return what `functional.pad` adds left, right, above and below to reach the multiple."""
    down, across = -height % multiple, -width % multiple
    return across // 2, across - across // 2, down // 2, down - down // 2


def _short_side(
    frames: UInt8[Tensor, "b 3 y x"], side: int, mode: str, *, antialias: bool
) -> Float[Tensor, "b 3 v u"]:
    height, width = frames.shape[-2:]
    short = min(height, width)
    size = (side * height // short, side * width // short)
    return _resized(frames.float(), size, mode, antialias=antialias)


def _resized(
    frames: Float[Tensor, "b 3 y x"], size: tuple[int, int], mode: str, *, antialias: bool
) -> Float[Tensor, "b 3 v u"]:
    if frames.shape[-2:] == size:
        return frames
    return functional.interpolate(frames, size, mode=mode, align_corners=False, antialias=antialias)


def _cropped(frames: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b 3 224 224"]:
    top, left = (round((side - SIDE) / 2) for side in frames.shape[-2:])
    return frames[..., top : top + SIDE, left : left + SIDE]


def _normalised(
    frames: Float[Tensor, "b 3 y x"], colours: tuple[tuple[float, ...], tuple[float, ...]]
) -> Float[Tensor, "b 3 y x"]:
    mean, std = (frames.new_tensor(values).view(3, 1, 1) for values in colours)
    return (frames / 255 - mean) / std
