"""Contact sheets and side-by-side videos."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import interpolate

from magicdistill.data_pipeline.io.whole_files import write_whole
from magicdistill.data_pipeline.media.video import write_mp4
from magicdistill.models.tensor_files import save_file
from magicdistill.platform.inference.output_files import MARK

Clips = Float[Tensor, "n 3 t y x"]
LABEL_PX = 16
SHOWN_PX = 160
"""Longest side, in pixels, of clips in the pictures made during training."""


def to_uint8(pixels: Tensor) -> np.ndarray:
    """Convert pixels in [-1, 1] to uint8."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()


def contact_sheet(
    path: Path, clips: Mapping[str, Clips], *, frame_stride: int = 2, zoom: int = 2, mark: str = ""
) -> None:
    """Write a PNG with a block of rows for each clip, a labelled row for each variant, and time to
    the right; `mark` is stored in it, for `read_mark`."""
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
    write_png(path, canvas, mark)


def shrink(clips: Clips) -> Clips:
    """Return clips on the CPU, reduced to at most SHOWN_PX pixels on the longest side."""
    scale = SHOWN_PX / max(clips.shape[-2:])
    if scale >= 1:
        return clips.cpu()
    size = (clips.shape[2], *(2 * round(scale * side / 2) for side in clips.shape[-2:]))
    return interpolate(clips.float(), size, mode="area").cpu()


def side_by_side(
    path: Path,
    clips: Mapping[str, Clips],
    *,
    fps: float,
    zoom: int = 2,
    variants_in: Literal["columns", "rows"] = "columns",
) -> None:
    """Write an MP4, played three times: variants in labelled columns or rows, clips across."""
    names = list(clips)
    frames = np.stack([to_uint8(clips[name]) for name in names])
    columns = variants_in == "columns"
    layout = "v n c t y x -> t (n y) (v x) c" if columns else "v n c t y x -> t (v y) (n x) c"
    video = rearrange(frames, layout).repeat(zoom, 1).repeat(zoom, 2)
    size = (video.shape[2], LABEL_PX) if columns else (LABEL_PX * 6, video.shape[1])
    margin = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(margin)
    for number, name in enumerate(names):
        start = number * (size[0] if columns else size[1]) // len(names) + 4
        draw.text((start, 2) if columns else (4, start), name, fill="black")
    labels = np.broadcast_to(np.asarray(margin), (len(video), *np.asarray(margin).shape))
    video = np.concatenate([labels, video], axis=1 if columns else 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(path, np.concatenate([video] * 3), fps)


def save_clips(path: Path, clips: Mapping[str, Clips]) -> None:
    """Store clips as uint8, one tensor for each variant."""
    tensors = {name: torch.from_numpy(to_uint8(found)) for name, found in clips.items()}
    write_whole(path, lambda temporary: save_file(tensors, temporary))


def load_clips(path: Path) -> dict[str, Clips]:
    """Return what `save_clips` wrote, in [-1, 1]."""
    return {name: found.float() / 127.5 - 1 for name, found in load_file(path).items()}


def write_png(path: Path, image: Image.Image, mark: str) -> None:
    """Write a PNG, whole or not at all, with a text by which `read_mark` knows it again."""
    info = PngInfo()
    info.add_text(MARK, mark)
    write_whole(path, lambda temporary: image.save(temporary, format="png", pnginfo=info))
