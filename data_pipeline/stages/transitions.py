"""Transitions between shots, found in small grey frames: flashes, dissolves, fades."""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np

from magicdistill.data_pipeline.rows import Array

SIDE = 32
"""Side in pixels of the small grey frames in which transitions are looked for."""
GAP = 4
"""Frames between two transitions up to which they are one: no shot is that short."""
FLASH_FRAMES = 5
"""Most frames that a flash lasts, its decay included."""
MIN_FLASH = 8.0
"""Least mean change in grey levels of 255 that a flash makes."""
REACHES = (3, 4, 6, 8, 12, 16, 24, 32)
"""Distances in frames from the middle of a dissolve to the pictures that it is compared with."""
BLANK_STD, RAMP = 4.0, 0.3
"""Contrast in grey levels up to which a frame is blank, and its least growth in each frame of a
fade."""
BLOCK = 1024


class Transition(NamedTuple):
    """Frames [start, stop) between two shots, which belong to neither; a cut has none."""

    start: int
    """First frame that no longer belongs to the shot before."""
    stop: int
    """First frame of the shot that follows."""

    def is_inside(self, start: int, stop: int) -> bool:
        """Tell whether frames [start, stop) hold a part of both shots or of the transition."""
        return self.start < stop and self.stop > start and (self.start, self.stop) != (start, start)


def small_gray(gray: Array) -> Array:
    """Return 8-bit luma (h, w) reduced to (SIDE, SIDE)."""
    return cv2.resize(gray, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def merged(transitions: Iterable[Transition]) -> list[Transition]:
    """Return transitions in order, those that overlap or nearly touch as one."""
    joined: list[Transition] = []
    for transition in sorted(transitions):
        if joined and transition.start <= joined[-1].stop + GAP:
            joined[-1] = Transition(joined[-1].start, max(joined[-1].stop, transition.stop))
        else:
            joined.append(transition)
    return joined


def changes(small: Array) -> Array:
    """Return the mean absolute difference of neighbouring frames (n, SIDE, SIDE), in grey levels.

    Entry `i` of n - 1 is that of frames `i` and `i + 1`.
    """
    return np.array([_difference(*pair) for pair in pairwise(small)])


def flashes(small: Array) -> Array:
    """Return for each pair of neighbouring frames whether it is inside a flash of light.

    A flash is a large change after which the picture of before comes back within FLASH_FRAMES.

    Args:
        small: grey frames (n, SIDE, SIDE), uint8.
    """
    change = changes(small)
    inside = np.zeros(len(change), dtype=bool)
    for pair in np.flatnonzero(change >= MIN_FLASH):
        for length in range(1, FLASH_FRAMES + 1):
            back = pair + 1 + length
            if back < len(small) and _difference(small[pair], small[back]) < 0.35 * change[pair]:
                inside[pair : pair + length + 1] = True
                break
    return inside


def dissolves(small: Array) -> list[Transition]:
    """Return the gradual changes from one picture to another.

    The middle of a dissolve is the mean of the pictures before and after it, and has less
    contrast than they; a picture that moves between two unlike views is far from their mean.

    Args:
        small: grey frames (n, SIDE, SIDE), uint8.
    """
    reach = np.zeros(len(small), dtype=int)
    for at in range(0, len(small), BLOCK):
        first = max(0, at - REACHES[-1])
        block = small[first : at + BLOCK + REACHES[-1]].reshape(-1, SIDE * SIDE)
        for distance in REACHES:
            middles = first + distance + np.flatnonzero(_is_mean(block, distance))
            reach[middles] = np.maximum(reach[middles], distance)
    middles = np.flatnonzero(reach)
    runs = np.split(middles, np.flatnonzero(np.diff(middles) > GAP) + 1) if len(middles) else []
    return [_extent(small, int(run[len(run) // 2]), reach) for run in runs]


def fades(small: Array) -> list[Transition]:
    """Return the changes through a blank picture, such as black, with the ramps on both sides.

    Args:
        small: grey frames (n, SIDE, SIDE), uint8.
    """
    contrast = small.reshape(len(small), -1).std(axis=1)
    lit = flashes(small)
    found = []
    for start, stop in runs(contrast <= BLANK_STD):
        if start == 0 or stop == len(small) or lit[start - 1 : stop].all():
            continue
        while start > 1 and contrast[start - 2] > contrast[start - 1] + RAMP:
            start -= 1
        while stop < len(small) - 1 and contrast[stop + 1] > contrast[stop] + RAMP:
            stop += 1
        found.append(Transition(start, stop))
    return found


def _difference(one: Array, other: Array) -> float:
    return cv2.norm(one, other, cv2.NORM_L1) / one.size


def _is_mean(frames: Array, distance: int) -> Array:
    """Return for the frames [distance, n - distance) of (n, d) whether each one is the mean of the
    unlike frames at that distance before and after it.
    """
    if len(frames) <= 2 * distance:
        return np.zeros(0, dtype=bool)
    wide = frames.astype(np.float32)
    before, middle, after = wide[: -2 * distance], wide[distance:-distance], wide[2 * distance :]
    error = np.linalg.norm(middle - (before + after) / 2, axis=1)
    change = np.linalg.norm(after - before, axis=1)
    contrast = wide.std(axis=1)
    first, now, last = (
        contrast[: -2 * distance],
        contrast[distance:-distance],
        contrast[2 * distance :],
    )
    product = (
        (before - before.mean(1, keepdims=True)) * (after - after.mean(1, keepdims=True))
    ).mean(1)
    unlike = (product < 0.5 * first * last) & (np.minimum(first, last) > BLANK_STD)
    return unlike & (error < 0.35 * change) & (now < 0.45 * (first + last))


def _extent(small: Array, middle: int, reach: Array) -> Transition:
    """Return the dissolve around a frame, from where the second picture begins to show."""
    wide = small[max(0, middle - REACHES[-1]) : middle + REACHES[-1] + 1]
    wide = wide.reshape(len(wide), -1).astype(np.float32)
    at = min(middle, REACHES[-1])
    furthest = int(reach[middle])
    sizes = {
        d: float(np.linalg.norm(wide[at + d] - wide[at - d])) for d in REACHES if d <= furthest
    }
    # Beyond the ends of the dissolve the two pictures differ no more.
    distance = next(d for d in sizes if sizes[d] >= 0.9 * max(sizes.values()))
    before, after = wide[at - distance], wide[at + distance]
    share = (wide - before) @ (after - before) / sizes[distance] ** 2
    low = at - next((i for i in range(at) if share[at - i] < 0.25), distance)
    high = at + next((i for i in range(len(wide) - at) if share[at + i] > 0.75), distance)
    # Half of the ramp lies between low and high, a quarter on either side of them.
    quarter, offset = (high - low) / 2, middle - at
    start, stop = int(offset + low - quarter), int(np.ceil(offset + high + quarter)) + 1
    return Transition(max(0, start), min(len(small), stop))


def runs(flags: Array) -> Iterator[tuple[int, int]]:
    """Yield [start, stop) of each run of true entries."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return ((int(start), int(stop)) for start, stop in edges.reshape(-1, 2))
