"""Bars at the borders: of one colour, with text in them, or a blurred copy of the picture."""

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from magicdistill.data_pipeline.rows import Array
from magicdistill.data_pipeline.scorers.base import Frame, RateScorer, Values

SIDES = ("top", "bottom", "left", "right")
DEEPEST = 0.45
"""Largest bar as a share of height or width."""
MIN_SHARE = 0.005
"""Smallest bar as a share of height or width; thinner edges are faults of the capture."""
BACKDROP = 0.8
"""Share of the lines behind a bar that has the bar's colour where both are one ground, as on title
cards."""
BLACK, WHITE = 32, 224
"""Luma up to which, or from which on, a bar may be at one side alone."""
SOFT = 2
"""Lines on either side of a seam that scaling and compression blend."""


class Border(NamedTuple):
    """What one side of a frame shows, by lines parallel to that side, from the border inwards."""

    colour: float
    """Luma of the outermost lines."""
    flat: Array
    """Share of each line that has that luma."""
    edge: Array
    """Share of each line where that luma ends and something else begins."""
    seam: Array
    """Share of each line at which the picture jumps after smooth lines."""
    detail: Array
    """Mean difference of neighbouring pixels along each line, in grey levels."""


class Letterbox(RateScorer):
    """Share of the picture under bars, and the height or width of each bar.

    A bar of one colour, black or other, is flat at the border and before its seam, is so in every
    sample with the same luma, may have text between, and ends for a good part of the line at the
    same depth. A dark backdrop ends at a different depth beside a head, and is no bar; neither is
    the ground of a title card, which shows behind the letters, too. A stripe of another colour than
    black or white at one side alone is part of the picture, such as a curtain. Bars on both
    sides that are a blurred copy of the picture are as wide as each other, have little detail
    beside the picture between them, and end in a straight seam.
    """

    kind: Literal["letterbox"] = "letterbox"
    sampling_fps: float = 1.0
    short_side: int = 540
    """Frames are reduced to this short side in pixels."""
    tolerance: int = 10
    """Grey levels of 255 by which a pixel of a bar may differ from the bar's colour."""
    min_edge: float = 0.3
    """Share of a line along which a bar of one colour has to end at once, in some sample."""
    min_seam: float = 0.4
    """Mean share of a line along which a blurred bar has to end at once."""
    max_detail: float = 0.4
    """Largest ratio of the detail in a blurred bar to that of the picture."""
    CODE: ClassVar = 3
    MODEL: ClassVar = "flatness, detail and straight seams of the borders"
    SCORES: ClassVar = ("share", *SIDES)

    def look(self, frame: Frame, last: Frame | None) -> tuple[Border, ...]:
        """Return what the four sides of a frame show, in the order of SIDES."""
        gray = frame.gray(self.short_side).astype(np.int16)
        turned = np.ascontiguousarray(gray.T)
        sides = (gray, gray[::-1], turned, turned[::-1])
        return tuple(_border(side, self.tolerance) for side in sides)

    def summary(self, looks: Sequence[tuple[Border, ...]], step_s: float) -> Values:
        """Return the bars' shares of height and width, and of the area together."""
        sides = [[look[side] for look in looks] for side in range(len(SIDES))]
        bars = [self._flat_bar(borders) for borders in sides]
        colours = [float(np.median([border.colour for border in borders])) for borders in sides]
        for one, other in ((0, 1), (2, 3)):
            are_pair = bars[one] and bars[other]
            if not are_pair or abs(colours[one] - colours[other]) > self.tolerance:
                for side in (one, other):
                    if BLACK < colours[side] < WHITE:
                        bars[side] = 0.0
            if not bars[one] and not bars[other]:
                bars[one], bars[other] = self._blurred_bars(sides[one], sides[other])
        top, bottom, left, right = bars
        share = 1 - max(0.0, 1 - top - bottom) * max(0.0, 1 - left - right)
        return {"share": share, **dict(zip(SIDES, bars, strict=True))}

    def _flat_bar(self, borders: Sequence[Border]) -> float:
        """Return the share of the frame under a bar of one colour at a side."""
        colours = [border.colour for border in borders]
        if max(colours) - min(colours) > self.tolerance:
            return 0.0
        flat = np.min([border.flat for border in borders], axis=0)
        edge = np.max([border.edge for border in borders], axis=0)
        whole = flat >= 0.97
        if not whole[:SOFT].all():
            return 0.0
        covered = np.cumsum(flat) / np.arange(1, len(flat) + 1)
        ends = [
            depth
            for depth in range(SOFT, int(DEEPEST * len(flat)))
            if edge[depth] >= self.min_edge
            and whole[depth - SOFT]
            and not whole[depth + SOFT]
            and covered[depth - SOFT] >= 0.6
        ]
        if not ends:
            return 0.0
        end = next(depth for depth in range(ends[-1] - SOFT, len(flat)) if not whole[depth])
        share = end / len(flat)
        is_backdrop = flat[end : len(flat) - end].mean() > BACKDROP
        return 0.0 if is_backdrop or share < MIN_SHARE else share

    def _blurred_bars(
        self, first: Sequence[Border], second: Sequence[Border]
    ) -> tuple[float, float]:
        """Return the shares of the frame under blurred bars at two opposite sides."""
        ends = [self._seam(borders) for borders in (first, second)]
        num_lines = len(first[0].flat)
        if not all(ends) or abs(ends[0] - ends[1]) > max(3, 0.01 * num_lines):
            return 0.0, 0.0
        return ends[0] / num_lines, ends[1] / num_lines

    def _seam(self, borders: Sequence[Border]) -> int:
        """Return the depth of the clearest seam behind which there is more detail, or 0."""
        seam = np.mean([border.seam for border in borders], axis=0)
        detail = np.mean([border.detail for border in borders], axis=0)
        num_lines = len(seam)
        for depth in np.argsort(-seam):
            if seam[depth] < self.min_seam:
                break
            if not 0.02 * num_lines <= depth <= DEEPEST * num_lines:
                continue
            inside = detail[depth + SOFT : num_lines - depth - SOFT].mean()
            if detail[: depth - SOFT].mean() < self.max_detail * inside:
                return int(depth)
        return 0


def _border(lines: Array, tolerance: int) -> Border:
    """Return what the lines (n, width) of luma show, from the border inwards."""
    colour = float(np.median(lines[:SOFT]))
    twice_away = np.abs(2 * lines - np.int16(2 * colour))  # a median may lie between two levels
    near = twice_away <= 2 * tolerance
    ends = near[: -2 * SOFT] & (twice_away[2 * SOFT :] > 4 * tolerance)
    jumps = np.abs(np.diff(lines, axis=0))
    smooth = np.maximum(jumps[:-3], jumps[1:-2])
    step = np.abs(lines[4:] - lines[2:-2])
    return Border(
        colour,
        _shares(near).astype(np.float16),
        _padded(_shares(ends), SOFT, len(lines)),
        _padded(_shares(step > 4 + 2 * smooth), 3, len(lines)),
        np.abs(np.diff(lines, axis=1)).mean(axis=1).astype(np.float16),
    )


def _shares(flags: Array) -> Array:
    """Return the share of each line that is true."""
    return np.count_nonzero(flags, axis=1) / flags.shape[1]


def _padded(values: Array, before: int, length: int) -> Array:
    """Return values at their depth in a line of zeros."""
    padded = np.zeros(length, dtype=np.float16)
    padded[before : before + len(values)] = values
    return padded
