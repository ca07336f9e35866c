"""Perceptual hashes, by which near duplicates are found."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from magicdistill.data_pipeline.scorers.base import CountScorer, Frame, Values

SIDE, LOW = 32, 8


class PHash(CountScorer):
    """64-bit DCT hashes (Zauner 2010) of evenly spaced frames; eight bytes a frame."""

    kind: Literal["phash"] = "phash"
    num_frames: int = 8
    MODEL: ClassVar = "DCT of 32 x 32 luma, its 8 x 8 low frequencies against their median"

    def look(self, frame: Frame, last: Frame | None) -> bytes:
        """Return the hash of a frame."""
        import cv2

        gray = cv2.resize(frame.gray(240), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        low = cv2.dct(gray.astype(np.float32))[:LOW, :LOW]
        return np.packbits(low > np.median(low)).tobytes()

    def summary(self, looks: Sequence[bytes], step_s: float) -> Values:
        """Return nothing: hashes are compared, not judged."""
        return {}

    def blob(self, looks: Sequence[bytes]) -> bytes:
        """Return the hashes one after the other."""
        return b"".join(looks)
