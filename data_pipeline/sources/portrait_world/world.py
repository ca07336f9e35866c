"""Procedural talking portraits: endless training video, one clip per seed.

Faces are drawn frontally in head units (x right, y down, z to the viewer; the chin is near y = 1),
lifted onto an ellipsoid and rotated per frame, so turning moves and foreshortens every feature.
Poses are random jumps: one frame does not tell where the head goes next.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from magicdistill.data_pipeline.media.video import write_mp4
from magicdistill.data_pipeline.sources.portrait_world.look import (
    CANVAS_PX,
    Appearance,
    draw_appearance,
)
from magicdistill.data_pipeline.sources.portrait_world.motion import Motion, draw_motion
from magicdistill.data_pipeline.sources.portrait_world.parts import Layer, person_layers

SHIFT_BITS = 4  # sub-pixel bits of the polygon coordinates
LENS_PX = 0.65  # blur of the lens (standard deviation) in pixels of the finished frame


def render_clip(seed: int, num_frames: int = 51, size: int = 64) -> np.ndarray:
    """Render one talking portrait; a pure function of its arguments.

    Args:
        seed: chooses person, place and performance.
        num_frames: number of frames f at 24 per second.
        size: height and width in pixels.

    Returns:
        uint8 RGB frames of shape (f, size, size, 3).
    """
    rng = np.random.default_rng(seed)
    look = draw_appearance(rng)
    motion = draw_motion(rng, num_frames)
    return _paint(look, motion, person_layers(look, motion), size)


def write_clips(
    directory: Path, seeds: Sequence[int], num_frames: int = 51, size: int = 64, fps: int = 24
) -> list[Path]:
    """Write one `portrait-<seed>.mp4` per seed, skipping files that exist; return all paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"portrait-{seed:06d}.mp4" for seed in seeds]
    for seed, path in zip(seeds, paths, strict=True):
        if not path.exists():
            write_mp4(path, render_clip(seed, num_frames, size), fps)
    return paths


def _paint(look: Appearance, motion: Motion, layers: list[Layer], size: int) -> np.ndarray:
    num_frames = len(motion.yaw)
    frames = np.empty((num_frames, size, size, 3), np.uint8)
    fixed = [np.rint(layer.points * 2**SHIFT_BITS).astype(np.int32) for layer in layers]
    for index in range(num_frames):
        canvas = _camera(look.background, motion.pan[index], motion.zoom[index])
        for layer, points in zip(layers, fixed, strict=True):
            if layer.visible is None or layer.visible[index]:
                shape = cv2.convexHull(points[index]) if layer.hull else points[index]
                cv2.fillPoly(canvas, [shape], layer.color, cv2.LINE_AA, SHIFT_BITS)
        canvas = cv2.GaussianBlur(canvas, (0, 0), LENS_PX * CANVAS_PX / size)
        frames[index] = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
    return frames


def _camera(background: np.ndarray, pan: np.ndarray, zoom: float) -> np.ndarray:
    """View of the background, which moves less than the person because it is far away."""
    scale = 1 + 0.4 * (zoom - 1)
    offset = CANVAS_PX / 2 - scale * len(background) / 2 - 0.5 * pan
    matrix = np.array([[scale, 0, offset[0]], [0, scale, offset[1]]])
    return cv2.warpAffine(
        background, matrix, (CANVAS_PX, CANVAS_PX), borderMode=cv2.BORDER_REPLICATE
    )
