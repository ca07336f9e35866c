"""Pictures with detail of all sizes, as photographs have it, and views of them."""

import cv2
import numpy as np


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """Return a picture (h, w, 3), uint8, whose detail halves in contrast with its size."""
    rng = np.random.default_rng(seed)
    total = np.full((height, width, 3), 128.0)
    for octave in range(6):
        size = (2 + (width >> (6 - octave)), 2 + (height >> (6 - octave)))
        noise = rng.normal(0, 45 / 2 ** (octave / 2), (size[1], size[0], 3))
        total += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(total, 0, 255).astype(np.uint8)


def view(whole: np.ndarray, height: int, width: int, x: float, y: float) -> np.ndarray:
    """Return the part (height, width, 3) of a picture whose corner is at (x, y)."""
    shift = np.array([[1, 0, -x], [0, 1, -y]], dtype=np.float32)
    return cv2.warpAffine(whole, shift, (width, height), flags=cv2.INTER_LINEAR, borderMode=4)
