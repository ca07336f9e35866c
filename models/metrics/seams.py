"""Whether a long video shows where its windows meet, and how far it drifts. Our own measures."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import torch
from jaxtyping import Float
from torch import Tensor

LEVELS = 127.5
"""Grey levels of 255 in a unit of pixels in [-1, 1]."""


@dataclass(frozen=True)
class Seams:
    """Frame differences and drifts, in grey levels of 255."""

    within: float
    """Mean difference of neighbouring frames within windows."""
    within_largest: float
    seam: float
    """The same where windows overlap, and into and out of there."""
    seam_largest: float
    mean_drift: float
    """Largest change of a colour's mean from the first second to the last."""
    std_drift: float
    """Largest change of a colour's standard deviation over the same time."""
    sharpness: float
    """Mean gradient in the last second over that of the first."""


class SeamMeter:
    """Measures a video as it comes; keeps one frame and eight numbers of each.

    Args:
        seams: the first frame of every overlap.
        overlap: frames of an overlap.
        per_second: frames that a second has.
    """

    def __init__(self, seams: Sequence[int], overlap: int, per_second: int) -> None:
        self.seams, self.overlap, self.per_second = seams, overlap, per_second
        self.last: Tensor | None = None
        self.steps: list[float] = []
        """Difference of frames i and i + 1."""
        self.facts: list[Tensor] = []
        """Means and standard deviations of the colours, and the mean gradient."""

    def add(self, clip: Float[Tensor, "1 3 t y x"]) -> None:
        """Measure the next frames."""
        frames = LEVELS * clip[0].float().cpu()
        joined = frames if self.last is None else torch.cat([self.last, frames], dim=1)
        self.steps += joined.diff(dim=1).abs().mean(dim=(0, 2, 3)).tolist()
        self.last = frames[:, -1:]
        gradient = frames.diff(dim=3).abs().mean((0, 2, 3)) + frames.diff(dim=2).abs().mean(
            (0, 2, 3)
        )
        colours = torch.cat([frames.mean(dim=(2, 3)), frames.std(dim=(2, 3))])
        self.facts += list(torch.cat([colours, gradient[None]]).unbind(dim=1))

    def result(self) -> Seams:
        """Return what was found; needs a seam."""
        spans = [range(start - 1, start + self.overlap) for start in self.seams]
        at_seams = {step for span in spans for step in span}
        within = [value for step, value in enumerate(self.steps) if step not in at_seams]
        seam = [value for step, value in enumerate(self.steps) if step in at_seams]
        facts = torch.stack(self.facts)
        first, last = facts[: self.per_second].mean(0), facts[-self.per_second :].mean(0)
        change = (last - first).abs()
        return Seams(
            within=mean(within),
            within_largest=max(within),
            seam=mean(seam),
            seam_largest=max(seam),
            mean_drift=float(change[:3].max()),
            std_drift=float(change[3:6].max()),
            sharpness=float(last[6] / first[6]),
        )
