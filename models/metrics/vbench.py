"""The seven VBench dimensions of the papers' tables, each of one video (Huang et al. 2024).

They are functions of frames, features or scores; `networks.py` loads what computes those. A
dimension's score is the mean over videos.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from magicdistill.models.metrics.preprocessing import padding

FLOW_FPS = 8
FLOW_LEVEL = 6.0
"""Pixels between frames on a short side of 256."""
FASTEST = 0.05
"""Share of a frame's pixels whose mean motion counts."""
IMAGE_WEIGHT, MEAN_WEIGHT, WORST_WEIGHT = 0.4, 0.3, 0.3

Between = Callable[[Tensor, Tensor], Tensor]
"""Of two (b 3 y x) batches: flow (b 2 y x) of levels, or the middle frame of [0, 1]."""


def temporal_flickering(frames: UInt8[Tensor, "t 3 y x"]) -> float:
    """Return 1 - the mean absolute difference of neighbouring frames over 255.

    VBench asks for still videos; the papers take it of all.
    """
    _need(frames, 2)
    return 1 - float(frames.float().diff(dim=0).abs().mean(dtype=torch.float64)) / 255


def subject_consistency(features: Float[Tensor, "t d"]) -> float:
    """Return the mean of the cosines of each frame to the first and to the one before.

    Of DINO features; cosines below zero count as zero.
    """
    _need(features, 2)
    unit = functional.normalize(features, dim=-1)
    to_first = (unit[1:] @ unit[0]).clamp(min=0)
    return float((_to_previous(unit) + to_first).mean() / 2)


def i2v_subject(features: Float[Tensor, "t d"], image: Float[Tensor, " d"]) -> float:
    """Return 0.4 of the best cosine to the image, 0.3 of the mean and 0.3 of the worst step.

    A step is the cosine of a frame to the one before, in DINO features; below zero is zero.
    """
    _need(features, 2)
    unit = functional.normalize(features, dim=-1)
    to_image = (unit @ functional.normalize(image, dim=-1)).clamp(min=0)
    steps = _to_previous(unit)
    return float(
        IMAGE_WEIGHT * to_image.max() + MEAN_WEIGHT * steps.mean() + WORST_WEIGHT * steps.min()
    )


def motion_smoothness(frames: UInt8[Tensor, "t 3 y x"], interpolate: Between) -> float:
    """Return 1 - the mean absolute error over 255 of odd frames made from even neighbours.

    `interpolate` takes frames of [0, 1] whose sides are multiples of 16.
    """
    _need(frames, 3)
    height, width = frames.shape[-2:]
    left, right, top, bottom = padding(height, width, multiple=16)
    padded = functional.pad(frames / 255, (left, right, top, bottom), mode="replicate")
    errors = []
    for (before, after), real in zip(pairwise(padded[::2].split(1)), frames[1::2], strict=False):
        middle = interpolate(before, after)[0, :, top : top + height, left : left + width]
        levels = (255 * middle).clamp(0, 255).floor()
        errors.append((levels - real).abs().mean(dtype=torch.float64))
    return 1 - float(torch.stack(errors).mean()) / 255


def dynamic_degree(frames: UInt8[Tensor, "t 3 y x"], fps: float, flow: Between) -> float:
    """Return 1 where the video moves, else 0.

    At about 8 frames a second, a step moves where its fastest 5 % of pixels move on average
    further than 6 pixels per 256 of the short side; 4 steps of 16 frames must. `flow` takes
    levels of 0 to 255 whose sides are multiples of 8.
    """
    sampled = frames[:: max(1, round(fps / FLOW_FPS))].float()
    _need(sampled, 2)
    pads = padding(*frames.shape[-2:], multiple=8)
    limit = FLOW_LEVEL * min(frames.shape[-2:]) / 256
    padded = functional.pad(sampled, pads, mode="replicate")
    steps = pairwise(padded.split(1))
    speeds = [_fastest(flow(before, after)[0]) for before, after in steps]
    moving = sum(speed > limit for speed in speeds)
    return float(moving >= round(4 * len(sampled) / 16))


def aesthetic_quality(scores: Float[Tensor, " t"]) -> float:
    """Return the mean over frames of LAION's predictor, of 10."""
    return float(scores.mean()) / 10


def imaging_quality(scores: Float[Tensor, " t"]) -> float:
    """Return the mean over frames of MUSIQ's score, of 100."""
    return float(scores.mean()) / 100


def _to_previous(unit: Float[Tensor, "t d"]) -> Float[Tensor, " s"]:
    return (unit[1:] * unit[:-1]).sum(-1).clamp(min=0)


def _fastest(flow: Float[Tensor, "2 y x"]) -> float:
    speed = flow.norm(dim=0).flatten()
    return float(speed.topk(int(FASTEST * speed.numel())).values.mean())


def _need(frames: Tensor, count: int) -> None:
    if len(frames) < count:
        raise ValueError(f"{len(frames)} frames are fewer than the {count} that this score needs")
