"""The parts of a drawn person as polygons, from back to front."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from magicdistill.data_pipeline.sources.portrait_world.look import (
    Appearance,
    Color,
    Number,
    mix,
    shade,
)
from magicdistill.data_pipeline.sources.portrait_world.motion import (
    CIRCLE,
    FACE_AXES,
    Body,
    Motion,
    rotation,
)

NECKLINES = {
    "round": [(0.5, 1.27), (0.4, 1.55), (0.18, 1.68)],
    "vee": [(0.48, 1.27), (0.25, 1.6), (0.0, 1.95)],
    "collar": [(0.44, 1.25), (0.2, 1.55), (0.0, 1.7)],
    "stripe": [(0.44, 1.25), (0.36, 1.46), (0.15, 1.53)],
    "closed": [(0.38, 1.22), (0.38, 1.3), (0.2, 1.36)],
}


@dataclass(frozen=True)
class Layer:
    """One filled polygon per frame, painted over the earlier layers."""

    points: np.ndarray  # pixels, (f, n, 2)
    color: Color
    visible: np.ndarray | None = None  # bool (f,)
    hull: bool = False  # paint the convex hull of the points


def person_layers(look: Appearance, motion: Motion) -> list[Layer]:
    """Pose all parts of a person; the layers are in painting order."""
    scale = look.head_px * motion.zoom
    rest = 64 + (look.centre_px - 64) * motion.zoom[:, None] - motion.pan
    widen = np.diag([look.width, 1, 1])
    head = Body(
        rotation(motion.yaw, motion.pitch, motion.roll) @ widen,
        rest + motion.sway + motion.shift,
        scale,
    )
    torso = Body(
        rotation(0.35 * motion.yaw, 0 * motion.yaw, 0.15 * motion.roll + motion.sway[:, 0] / 150),
        rest + 0.7 * motion.sway + 0.45 * motion.shift,
        scale,
    )
    return [
        *_back_hair(look, head),
        *_torso(look, head, torso),
        *_skull(look, head),
        *_face(look, head, motion),
        *_front(look, head),
    ]


def _back_hair(look: Appearance, head: Body) -> list[Layer]:
    layers = []
    if look.hair_style in ("long", "long_fringe"):
        fall = head.outline((0, 0.62, -0.3), (0.86, 1.0, 0.5))
        top = head.outline((0, -0.15, -0.15), (0.88, 0.95, 0.9))
        layers.append(Layer(np.concatenate([fall, top], 1), shade(look.hair, 0.75), hull=True))
    if look.hair_style == "bun":
        layers.append(Layer(head.outline((0, -1.15, -0.3), (0.34, 0.3, 0.34)), look.hair))
    return layers


def _torso(look: Appearance, head: Body, torso: Body) -> list[Layer]:
    shadow = shade(look.skin, 0.68)
    neck_top = head.project(np.array([[-0.4, 0.5, -0.1], [0.4, 0.5, -0.1]]))
    neck_low = torso.project(_flat(np.array([[0.45, 1.5], [-0.45, 1.5]])))
    shoulders = _mirrored(
        [(0.36, 1.22), (0.62, 1.34), (1.15, 1.5), (1.5, 1.72), (1.72, 2.2), (1.9, 4.5)]
    )
    dim_side = np.concatenate([shoulders[:6], [(1.2, 4.5), (1.02, 2.6), (0.7, 1.7)]])
    dim_side = dim_side * [-np.sign(look.light[0]), 1]
    layers = [
        Layer(torso.project(_flat(shoulders)), look.clothes),
        Layer(torso.project(_flat(dim_side)), shade(look.clothes, 0.82)),
    ]
    if look.neckline == "stripe":
        band = _mirrored([(1.63, 1.95), (1.72, 2.2)])
        layers.append(Layer(torso.project(_flat(band)), look.trim))
    skin_patch = torso.project(_flat(_mirrored(NECKLINES[look.neckline])))
    layers += [
        Layer(skin_patch, shade(look.skin, 0.88)),
        Layer(np.concatenate([neck_top, neck_low], 1), shadow),
    ]
    if look.neckline == "collar":
        for side in (-1, 1):
            flap = np.array([(0.4, 1.12), (0.58, 1.38), (0.32, 1.78), (0.02, 1.66)]) * [side, 1]
            layers.append(Layer(torso.project(_flat(flap)), look.trim))
    return layers


def _skull(look: Appearance, head: Body) -> list[Layer]:
    """Hair cap, ears and the shaded skin of the face."""
    shadow = shade(look.skin, 0.7)
    bald = look.hair_style == "bald"
    grow = {"curly": 1.2, "crop": 1.03, "bald": 0.99}.get(look.hair_style, 1.1)
    cap = Layer(
        head.outline((0, -0.16, -0.12), (0.78 * grow, 0.87 * grow, 0.86 * grow)),
        shadow if bald else look.hair,
    )
    behind, before = [], []
    for side in (-1, 1):
        depth = head.rotation[:, 2, 0] * side
        for where, seen in ((behind, depth < 0.08), (before, depth >= 0.08)):
            ear = head.outline((0.74 * side, 0.1, -0.1), (0.08, 0.19, 0.13))
            core = head.outline((0.77 * side, 0.1, -0.1), (0.05, 0.1, 0.07))
            where.append(Layer(ear, shade(look.skin, 0.85), seen))
            where.append(Layer(core, shadow, seen))
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    lon = np.deg2rad(74) * np.cos(angle)
    top = 62 if bald else 46
    lat = np.deg2rad(np.where(np.sin(angle) < 0, top, 50)) * np.sin(angle)
    sphere = np.stack([np.sin(lon) * np.cos(lat), np.sin(lat), np.cos(lon) * np.cos(lat)], -1)
    skin = np.concatenate(
        [head.wrap(sphere, FACE_AXES), head.outline((0, 0.5, 0.2), (0.5, 0.53, 0.48))], 1
    )
    nearest = (skin @ look.light).argmax(1)
    anchor = skin[np.arange(len(skin)), nearest][:, None]
    lit = [
        Layer(anchor + size * (skin - anchor), mix(shadow, look.skin, share), hull=True)
        for size, share in ((1.0, 0.3), (0.92, 0.6), (0.84, 0.85), (0.74, 1.0))
    ]
    far = _strands(look, head, front=False) if look.hair_style.startswith("long") else []
    return [*behind, cap, *before, *far, *lit]


def _beard(look: Appearance, head: Body) -> list[Layer]:
    layers = []
    if look.beard:
        low = _mirrored([(0.66, 0.25), (0.62, 0.5), (0.45, 0.85), (0.2, 0.98)])
        cheek = np.array([(-0.5, 0.4), (-0.3, 0.38), (0, 0.4), (0.3, 0.38), (0.5, 0.4)])
        layers.append(Layer(head.lift(np.concatenate([low, cheek])), shade(look.hair, 0.9)))
    if look.moustache:
        hair = _mirrored([(0.0, 0.38), (0.16, 0.39), (0.32, 0.5), (0.12, 0.47), (0.0, 0.46)])
        layers.append(Layer(head.lift(hair), shade(look.hair, 0.7)))
    return layers


def _eye(look: Appearance, head: Body, motion: Motion, side: int) -> list[Layer]:
    half_w, half_h = 0.185 * look.eye, 0.125 * look.eye
    x = np.linspace(-1, 1, 11)
    arch = 1 - np.abs(x) ** 2.2
    lid = motion.lid[:, None]
    upper = half_h * (0.6 - 1.6 * lid) * arch
    lower = np.broadcast_to(0.62 * half_h * arch, upper.shape)

    def place(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return head.lift(np.stack(np.broadcast_arrays(0.3 * side + x, y - 0.03), -1))

    white = place(half_w * np.r_[x, x[::-1]], np.concatenate([upper, lower[:, ::-1]], 1))
    lash_y = np.concatenate([upper - 0.05 * (0.4 + arch), upper[:, ::-1] + 0.012], 1)
    lash = place(1.1 * half_w * np.r_[x, x[::-1]], lash_y)
    gaze = motion.gaze * [0.5 * half_w, 0.3 * half_h]

    def disc(radius: float, shift: tuple[Number, Number] = (0, 0)) -> np.ndarray:
        spot = gaze[:, None] + radius * CIRCLE + shift
        bound = 1 - np.abs(np.clip(spot[..., 0] / half_w, -1, 1)) ** 2.2
        low = half_h * (0.6 - 1.6 * lid) * bound
        return place(spot[..., 0], np.clip(spot[..., 1], low, 0.62 * half_h * bound))

    open_ = motion.lid > 0.15
    return [
        Layer(white, (250, 250, 250), open_),
        Layer(disc(0.52 * half_w), look.iris, open_),
        Layer(disc(0.27 * half_w), (12, 10, 12), open_),
        Layer(disc(0.12 * half_w, (-0.035, -0.035)), (255, 255, 255), motion.lid > 0.7),
        Layer(lash, (34, 22, 22)),
    ]


def _brow(look: Appearance, head: Body, motion: Motion, side: int) -> Layer:
    x = np.linspace(-1, 1, 7)
    middle = -0.3 - 0.09 * motion.brow[:, None] - 0.05 * (1 - x**2)
    thick = 0.035 * (1.2 - 0.5 * side * x)
    across = 0.31 * side + 0.21 * np.r_[x, x[::-1]]
    down = np.concatenate([middle - thick, middle[:, ::-1] + thick[::-1]], 1)
    color = mix(shade(look.hair, 0.6), shade(look.skin, 0.35), 0.4)
    return Layer(head.lift(np.stack(np.broadcast_arrays(across, down), -1)), color)


def _mouth(look: Appearance, head: Body, motion: Motion) -> list[Layer]:
    lips = mix(shade(look.skin, 0.85), (178, 40, 62), 0.6)
    x = np.linspace(-1, 1, 11)
    arch = 1 - x**2
    opening, smile = motion.open[:, None], motion.smile[:, None]
    half_w = 0.27 + 0.07 * smile - 0.085 * motion.pucker[:, None] - 0.03 * opening
    corner = -0.1 * smile * x**2 + 0.03 * smile
    gap_top = 0.53 + corner - 0.07 * opening * arch
    gap_low = 0.53 + corner + 0.24 * opening * arch
    full = 0.06 + 0.025 * motion.pucker[:, None]

    def band(top: np.ndarray, low: np.ndarray, width: float = 1.0) -> np.ndarray:
        both = width * half_w * np.r_[x, x[::-1]]
        return head.lift(np.stack([both, np.concatenate([top, low[:, ::-1]], 1)], -1))

    spread = arch**0.6
    parted = motion.open > 0.06
    teeth_low = np.minimum(gap_top + 0.075 * arch, gap_low)
    tongue_top = np.maximum(gap_low - 0.08 * arch * opening, gap_top)
    seam = band(gap_top - 0.012, gap_low + 0.012)
    return [
        Layer(band(gap_top - full * spread, gap_low + 1.25 * full * spread, 1.08), lips),
        Layer(seam, (66, 14, 26)),
        Layer(band(tongue_top, gap_low, 0.7), (190, 76, 84), motion.open > 0.3),
        Layer(band(gap_top, teeth_low, 0.82), (246, 242, 236), parted),
    ]


def _nose(look: Appearance, head: Body) -> list[Layer]:
    side = -np.sign(look.light[0])
    bridge, tip = (0, -0.06, 0.84), (0, 0.25, 1.07)
    wings = [(0.13 * s, 0.31, 0.86) for s in (side, -side)]
    under = (0, 0.34, 0.94)
    dark, light = shade(look.skin, 0.72), shade(look.skin, 1.08)
    return [
        Layer(head.project(np.array([bridge, tip, wings[0]])), dark),
        Layer(head.project(np.array([tip, wings[0], under, wings[1]])), shade(look.skin, 0.6)),
        Layer(head.project(np.array([bridge, tip, (-0.06 * side, 0.26, 1.0)])), light),
    ]


def _face(look: Appearance, head: Body, motion: Motion) -> list[Layer]:
    return [
        *_beard(look, head),
        *_eye(look, head, motion, -1),
        *_eye(look, head, motion, 1),
        *(_brow(look, head, motion, side) for side in (-1, 1)),
        *_mouth(look, head, motion),
        *_nose(look, head),
    ]


def _strands(look: Appearance, head: Body, front: bool) -> list[Layer]:
    """Hair along the cheeks: the side turned to the viewer is in front of the face."""
    layers = []
    for side in (-1, 1):
        strand = head.outline((0.74 * side, 0.3, -0.1), (0.13, 0.85, 0.25))
        seen = (side * head.rotation[:, 2, 0] > -0.12) == front
        layers.append(Layer(strand, look.hair, seen))
    return layers


def _front(look: Appearance, head: Body) -> list[Layer]:
    """Hair in front of the face, and glasses."""
    layers = []
    hair_axes = FACE_AXES * [1.06, 1.06, 1.04]
    if look.hair_style in ("fringe", "long_fringe", "short", "bun", "curly"):
        side = np.sign(look.light[0])
        drop = -0.42 if "fringe" in look.hair_style else -0.56
        x = np.linspace(-0.7, 0.7, 9)
        edge = drop + 0.14 * np.sin(4 * x * side) - (0.1 if drop < -0.5 else 0) + 0.3 * x**4
        top = -1.03 * np.sqrt(np.clip(1 - (x[::-1] / 0.78) ** 2, 0.02, 1))
        lock = np.concatenate([np.stack([x, edge], -1), np.stack([x[::-1], top], -1)])
        layers.append(Layer(head.lift(lock, hair_axes), shade(look.hair, 1.12)))
    if look.hair_style in ("long", "long_fringe"):
        layers += _strands(look, head, front=True)
    if look.glasses:
        for side in (-1, 1):
            ring = np.array([[0.31 * side, -0.01]]) + 0.25 * CIRCLE
            inner = np.array([[0.31 * side, -0.01]]) + 0.21 * CIRCLE
            loop = np.concatenate([ring, ring[:1], inner[:1], inner[:0:-1], inner[:1]])
            layers.append(Layer(head.lift(loop), (24, 22, 30)))
        bridge = np.array([(-0.08, -0.06), (0.08, -0.06), (0.08, -0.02), (-0.08, -0.02)])
        layers.append(Layer(head.lift(bridge), (24, 22, 30)))
    return layers


def _mirrored(points: Sequence[tuple[Number, Number]]) -> np.ndarray:
    """Close an outline given by its right half, top to bottom."""
    right = np.array(points, dtype=float)
    return np.concatenate([right, right[::-1] * [-1, 1]])


def _flat(points: np.ndarray) -> np.ndarray:
    """Give frontal points (n, 2) zero depth."""
    return np.concatenate([points, np.zeros_like(points[..., :1])], -1)
