"""Perceptual hashes, by which near duplicates are found."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from magicdistill.data_pipeline.rows import Array
from magicdistill.data_pipeline.scorers.base import CountScorer, Frame, Values

SIDE, LOW = 32, 8
MIRRORED = np.resize([1.0, -1.0], LOW).astype(np.float32)
"""Signs of a mirrored picture's DCT: odd horizontal frequencies change theirs."""


class PHash(CountScorer):
    """64-bit DCT hashes (Zauner 2010) of evenly spaced frames, as they are and mirrored.

    The blob has eight bytes for each frame as it is, then eight for each frame mirrored from left
    to right: a mirrored copy's second half is its original's first.
    """

    kind: Literal["phash"] = "phash"
    num_frames: int = 8
    CODE: ClassVar = 2
    MODEL: ClassVar = "DCT of 32 x 32 luma, its 8 x 8 low frequencies against their median"

    def look(self, frame: Frame, last: Frame | None) -> tuple[bytes, bytes]:
        """Return the hashes of a frame and of its mirror image."""
        import cv2

        gray = cv2.resize(frame.gray(240), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        low = cv2.dct(gray.astype(np.float32))[:LOW, :LOW]
        return _hash(low), _hash(low * MIRRORED)

    def summary(self, looks: Sequence[tuple[bytes, bytes]], step_s: float) -> Values:
        """Return nothing: hashes are compared, not judged."""
        return {}

    def blob(self, looks: Sequence[tuple[bytes, bytes]]) -> bytes:
        """Return the hashes one after the other, then those of the mirrored frames."""
        return b"".join(hash_ for hashes in zip(*looks, strict=True) for hash_ in hashes)


def _hash(low: Array) -> bytes:
    return np.packbits(low > np.median(low)).tobytes()
