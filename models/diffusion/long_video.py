"""Videos longer than the model's: a context window slides over time (003: Magic141's inference).

Each window continues the last frames of the window before. Known: the last frame is its image
prior. Ours: further overlapping frames are held fixed while the window is sampled, the overlap is
crossfaded, and the frames that a window starts from are given the first frame's colours and pulled
towards its coarse picture, because errors would otherwise add up from window to window.
"""

from collections.abc import Callable, Iterator

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from magicdistill.models.diffusion.context_windows import ContextWindows
from magicdistill.models.diffusion.flow import per_sample
from magicdistill.models.diffusion.samplers import Velocity
from magicdistill.models.networks.conditioning.conditions import Conditions

Pixels = Float[Tensor, "b 3 t y x"]
Frame = Float[Tensor, "b 3 1 y x"]
GenerateWindow = Callable[[Tensor, int], Tensor]
"""(frames to continue (b 3 k y x), number of the window) -> the window's frames (b 3 t y x)."""
LARGEST_GAIN = 1.25
"""Largest factor by which the spread of colours is stretched or compressed."""
COARSE = 16
"""Cells along each side of a coarse picture."""


def continued(velocity: Velocity, known: Float[Tensor, "b c k h w"]) -> Velocity:
    """Hold the first k latent frames to known ones: there v = (x_sigma - x0) / sigma.

    The sampler then keeps them at the noise level of the other frames, which attend to them and
    continue their motion. Ours.
    """
    length = known.shape[2]

    def call(x: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        v = velocity(x, sigma, conditions)
        to_known = (x[:, :, :length] - known) / per_sample(sigma, known)
        return torch.cat([to_known, v[:, :, length:]], dim=2)

    return call


def slide(
    generate: GenerateWindow, first: Frame, windows: ContextWindows, *, pull: float = 0.2
) -> Iterator[Pixels]:
    """Yield a long video in parts (b 3 t y x), given its first frame; one window is in memory.

    `pull`, 0 to 1, says how far each window's start is moved to the first frame's coarse picture.
    """
    tail, left = first, windows.total
    for index in range(windows.count):
        start = pulled(match_colours(tail, first), first, pull) if index else first
        clip = generate(start, index)
        if index:
            overlap = windows.overlap
            faded = crossfade(tail, clip[:, :, :overlap])
            clip = torch.cat([faded, clip[:, :, overlap:]], dim=2)
        is_last = index == windows.count - 1
        part = clip[:, :, : left if is_last else windows.stride]
        tail, left = clip[:, :, windows.stride :], left - part.shape[2]
        yield part


def crossfade(before: Pixels, after: Pixels) -> Pixels:
    """Blend from one clip into another of the same length, with weights in equal steps."""
    length = before.shape[2]
    weight = torch.arange(1, length + 1, device=before.device) / (length + 1)
    return torch.lerp(before, after, weight.view(-1, 1, 1))


def pulled(pixels: Pixels, reference: Frame, strength: float) -> Pixels:
    """Move a clip's mean coarse picture towards a reference's; detail and motion stay."""
    mean = pixels.mean(dim=2, keepdim=True)
    return (pixels + strength * (coarse(reference) - coarse(mean))).clamp(-1, 1)


def coarse(pixels: Pixels) -> Pixels:
    """Return what is left of frames in COARSE x COARSE cells, interpolated linearly."""
    frames = rearrange(pixels, "b c t y x -> (b t) c y x")
    cells = functional.adaptive_avg_pool2d(frames, COARSE)
    smooth = functional.interpolate(cells, frames.shape[2:], mode="bilinear")
    return rearrange(smooth, "(b t) c y x -> b c t y x", b=len(pixels))


def match_colours(pixels: Pixels, reference: Frame) -> Pixels:
    """Give a clip the mean and standard deviation of each colour of a reference."""
    dims = (2, 3, 4)
    wanted, found = (p.std(dim=dims, correction=0, keepdim=True) for p in (reference, pixels))
    gain = (wanted / found).nan_to_num(1.0).clamp(1 / LARGEST_GAIN, LARGEST_GAIN)
    centred = pixels - pixels.mean(dim=dims, keepdim=True)
    return (gain * centred + reference.mean(dim=dims, keepdim=True)).clamp(-1, 1)
