"""How context windows cover a long video; apart from `long_video.py`, which imports PyTorch."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ContextWindows:
    """The context windows that cover a long video; all counts are frames of pixels.

    Raises ValueError if the overlap is not 4k+1 or leaves no new frame.
    """

    total: int
    """Length of the video."""
    num_frames: int
    """Length of a window."""
    overlap: int
    """Frames that a window has in common with the one before."""

    def __post_init__(self) -> None:
        if self.total < 1:
            raise ValueError(f"a video has at least one frame, got {self.total}")
        if self.overlap % 4 != 1 or not 0 < self.overlap < self.num_frames:
            raise ValueError(
                f"windows of {self.num_frames} frames overlap by 1, 5, 9, ... and fewer than "
                f"{self.num_frames} frames, got {self.overlap}"
            )

    @property
    def count(self) -> int:
        """Number of windows."""
        return 1 + max(0, math.ceil((self.total - self.num_frames) / self.stride))

    @property
    def stride(self) -> int:
        """New frames in every window except the first."""
        return self.num_frames - self.overlap

    def seams(self) -> list[int]:
        """Return the first frame of every overlap."""
        return [index * self.stride for index in range(1, self.count)]
