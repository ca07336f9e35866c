"""How a drawn person moves: poses, speech and expression, one value per frame."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from magicdistill.data_pipeline.sources.portrait_world.look import Number

FACE_AXES = np.array([0.72, 1.0, 0.86])
PIVOT = np.array([0.0, 0.95, -0.25])  # the head turns about the top of the neck
CIRCLE = np.stack([f(np.linspace(0, 2 * np.pi, 28, endpoint=False)) for f in (np.cos, np.sin)], -1)


@dataclass(frozen=True)
class Motion:
    """What changes: one value per frame, each of shape (f,)."""

    yaw: np.ndarray
    pitch: np.ndarray
    roll: np.ndarray
    shift: np.ndarray  # of the head in pixels, (f, 2)
    sway: np.ndarray  # of the whole person in pixels, (f, 2)
    pan: np.ndarray  # of the camera in pixels, (f, 2)
    zoom: np.ndarray
    open: np.ndarray
    pucker: np.ndarray
    smile: np.ndarray
    lid: np.ndarray  # 1 open, 0 closed
    gaze: np.ndarray  # in [-1, 1], (f, 2)
    brow: np.ndarray


@dataclass(frozen=True)
class Body:
    """A posed rigid part: rotation (f, 3, 3), origin in pixels (f, 2), pixels per unit (f,)."""

    rotation: np.ndarray
    origin: np.ndarray
    scale: np.ndarray

    def project(self, points: np.ndarray) -> np.ndarray:
        """Project points (n, 3) or (f, n, 3) to pixels (f, n, 2)."""
        posed = (points - PIVOT) @ self.rotation.swapaxes(1, 2) + PIVOT
        return self.origin[:, None] + self.scale[:, None, None] * posed[..., :2]

    def outline(self, centre: Sequence[Number], axes: Sequence[Number]) -> np.ndarray:
        """Outline in pixels (f, n, 2) of an ellipsoid fixed to this part."""
        spread = self.rotation[:, :2] * np.asarray(axes)
        factor = np.linalg.cholesky(spread @ spread.swapaxes(1, 2))
        return self.project(np.asarray([centre])) + self.scale[:, None, None] * (
            CIRCLE @ factor.swapaxes(1, 2)
        )

    def lift(self, flat: np.ndarray, axes: np.ndarray = FACE_AXES) -> np.ndarray:
        """Lift frontal points (n, 2) or (f, n, 2) onto an ellipsoid; hidden ones go to its rim."""
        unit = flat / axes[:2]
        depth = np.sqrt(np.clip(1 - (unit**2).sum(-1, keepdims=True), 0, None))
        return self.wrap(np.concatenate([unit, depth], -1), axes)

    def wrap(self, unit: np.ndarray, axes: np.ndarray) -> np.ndarray:
        """Project unit-sphere points (n, 3) or (f, n, 3) on an ellipsoid to pixels (f, n, 2)."""
        towards = self.rotation[:, 2] / axes
        towards = (towards / np.linalg.norm(towards, axis=-1, keepdims=True))[:, None]
        hidden = np.minimum((unit * towards).sum(-1, keepdims=True), 0)
        rim = unit - hidden * towards
        scale = np.where(hidden < 0, np.linalg.norm(rim, axis=-1, keepdims=True), 1)
        return self.project(rim / scale * axes)


def draw_motion(rng: np.random.Generator, num_frames: int) -> Motion:
    """Draw a performance of some frames: 4 % nearly still, 12 % with a strong sway or camera pan.

    The tracks are stationary and have begun before the first frame, so windows may start anywhere.
    """
    kind = rng.random()
    energy = 0.03 if kind < 0.04 else rng.uniform(0.05, 0.18)
    large = kind > 0.88
    turn = energy * np.deg2rad(_jumps(rng, num_frames, -1, 1, dims=3) * [45, 22, 15])
    turn += 0.05 * energy * _waves(rng, num_frames, 0.3, 1.2, dims=3)
    speaking = _jumps(rng, num_frames, -0.6, 1.9, gap=(6, 16), duration=(4, 7))
    syllables = 0.5 + 0.75 * _waves(rng, num_frames, 1.2, 3)
    times = np.arange(num_frames)[:, None]
    blinks = np.cumsum(rng.exponential(24, size=8 + num_frames // 4) + 6) - 40
    closed = 1 - np.abs(times - blinks) / rng.uniform(2.2, 3.4, size=blinks.shape)
    sway = _jumps(rng, num_frames, -1, 1, gap=(8, 16), duration=(8, 13), dims=2) * [8, 3]
    pan = _jumps(rng, num_frames, -1, 1, gap=(9, 18), duration=(9, 14), dims=2) * [8, 3]
    panning = rng.random() < 0.5
    return Motion(
        yaw=turn[:, 0],
        pitch=turn[:, 1],
        roll=turn[:, 2],
        shift=energy * _jumps(rng, num_frames, -1, 1, dims=2) * [13, 8],
        sway=sway * (large and not panning),
        pan=pan * (large and panning),
        zoom=1.02 + energy * _jumps(rng, num_frames, -0.1, 0.11)[:, 0],
        open=np.clip(np.clip(speaking, 0, 1) * syllables, 0, 1)[:, 0],
        pucker=_jumps(rng, num_frames, -0.6, 1, gap=(6, 14), duration=(5, 9))[:, 0],
        smile=_jumps(rng, num_frames, -0.5, 1, gap=(8, 18), duration=(5, 8))[:, 0],
        lid=1 - np.clip(1.6 * closed, 0, 1).max(-1),
        gaze=_jumps(rng, num_frames, -1, 1, gap=(8, 20), duration=(4, 7), dims=2),
        brow=_jumps(rng, num_frames, -0.6, 1, gap=(7, 16), duration=(4, 6))[:, 0],
    )


def _jumps(
    rng: np.random.Generator, num_frames: int, low: Number, high: Number,
    gap: tuple[int, int] = (8, 20), duration: tuple[int, int] = (8, 14), dims: int = 1,
) -> np.ndarray:  # fmt: skip
    """Track of shape (f, dims) that keeps moving to new uniform targets, minimum-jerk each time."""
    starts = np.cumsum(rng.uniform(*gap, size=4 + num_frames // gap[0])) - 3 * gap[1]
    targets = rng.uniform(low, high, size=(len(starts) + 1, dims))
    steps = np.diff(targets, axis=0)
    reach = np.abs(steps).max(-1) / (high - low)
    lengths = duration[0] + (duration[1] - duration[0]) * reach
    phase = np.clip((np.arange(num_frames)[:, None] - starts) / lengths, 0, 1)
    return targets[0] + (phase**3 * (10 - 15 * phase + 6 * phase**2)) @ steps


def _waves(
    rng: np.random.Generator, num_frames: int, low_hz: Number, high_hz: Number, dims: int = 1
) -> np.ndarray:
    """Sum of three sines with random frequency and phase, shape (f, dims), within [-1, 1]."""
    rate = rng.uniform(low_hz, high_hz, size=(3, 1, dims)) * 2 * np.pi / 24
    phase = rng.uniform(0, 2 * np.pi, size=(3, 1, dims))
    return np.sin(np.arange(num_frames)[:, None] * rate + phase).mean(0)


def rotation(yaw: np.ndarray, pitch: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """Rotation matrices (f, 3, 3): positive yaw looks right, positive pitch looks down."""
    one, nil = np.ones_like(yaw), np.zeros_like(yaw)
    (sy, cy), (sp, cp), (sr, cr) = ((np.sin(a), np.cos(a)) for a in (yaw, pitch, roll))
    turn = np.array([[cy, nil, sy], [nil, one, nil], [-sy, nil, cy]])
    nod = np.array([[one, nil, nil], [nil, cp, sp], [nil, -sp, cp]])
    tilt = np.array([[cr, -sr, nil], [sr, cr, nil], [nil, nil, one]])
    tilt, nod, turn = (np.moveaxis(m, -1, 0) for m in (tilt, nod, turn))
    return tilt @ nod @ turn
