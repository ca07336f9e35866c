"""Contact sheets and side-by-side videos."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from magicdistill.data_pipeline.video import write_mp4

Clips = Float[Tensor, "n 3 t y x"]
LABEL_PX = 16


def to_uint8(pixels: Tensor) -> np.ndarray:
    """Turn pixels in [-1, 1] into bytes."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()


def contact_sheet(
    path: Path, clips: Mapping[str, Clips], *, frame_stride: int = 2, zoom: int = 2
) -> None:
    """Write a PNG: one block of rows a clip, one labelled row a variant, time to the right."""
    names = list(clips)
    strips = np.stack([to_uint8(clips[name][:, :, ::frame_stride]) for name in names])
    image = rearrange(strips, "v n c t y x -> (n v y) (t x) c")
    height = strips.shape[-2] * zoom
    sheet = Image.fromarray(image).resize(
        (image.shape[1] * zoom, image.shape[0] * zoom), Image.Resampling.NEAREST
    )
    canvas = Image.new("RGB", (sheet.width + 120, sheet.height), "white")
    canvas.paste(sheet, (120, 0))
    draw = ImageDraw.Draw(canvas)
    for row in range(strips.shape[0] * strips.shape[1]):
        draw.text((6, row * height + height // 2 - 6), names[row % len(names)], fill="black")
    _write(canvas, path)


def side_by_side(path: Path, clips: Mapping[str, Clips], *, fps: float, zoom: int = 2) -> None:
    """Write an MP4: one labelled column a variant, one row a clip, played three times."""
    names = list(clips)
    frames = np.stack([to_uint8(clips[name]) for name in names])
    video = rearrange(frames, "v n c t y x -> t (n y) (v x) c").repeat(zoom, 1).repeat(zoom, 2)
    header = Image.new("RGB", (video.shape[2], LABEL_PX), "white")
    draw = ImageDraw.Draw(header)
    for column, name in enumerate(names):
        draw.text((column * video.shape[2] // len(names) + 4, 2), name, fill="black")
    labels = np.broadcast_to(np.asarray(header), (len(video), *np.asarray(header).shape))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(path, np.concatenate([np.concatenate([labels, video], axis=1)] * 3), fps)


def _write(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial.png")
    image.save(temporary)
    temporary.replace(path)
