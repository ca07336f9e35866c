"""How a drawn person and their surroundings look: fixed for a clip, drawn from a seed."""

from dataclasses import dataclass

import cv2
import numpy as np

Number = int | float  # said aloud: the type checks under pytest take no int for a float
Color = tuple[Number, Number, Number]

CANVAS_PX = 128  # drawn at this size, then area-averaged down
BACKGROUND_PAD_PX = 48  # room for the camera to pan
SKINS = [(255, 224, 200), (250, 212, 182), (244, 200, 165), (236, 186, 146), (222, 168, 126),
         (200, 142, 102), (170, 116, 80), (136, 90, 62)]  # fmt: skip
HAIRS = [(28, 22, 22), (58, 38, 28), (96, 60, 36), (140, 88, 46), (206, 164, 90), (232, 204, 140),
         (168, 64, 30), (176, 176, 180), (90, 50, 110)]  # fmt: skip
IRISES = [(70, 42, 24), (96, 62, 30), (60, 110, 160), (70, 120, 70), (70, 80, 90)]
HAIR_STYLES = ("short", "crop", "long", "long_fringe", "bun", "fringe", "curly", "bald")


@dataclass(frozen=True)
class Appearance:
    """What stays the same in a clip: colours, proportions, dress and surroundings."""

    skin: Color
    hair: Color
    iris: Color
    clothes: Color
    trim: Color
    hair_style: str
    neckline: str
    glasses: bool
    beard: bool
    moustache: bool
    light: np.ndarray  # direction towards the light in the image, shape (2,)
    head_px: float  # half the height of the head
    width: float  # head width relative to the standard head
    eye: float  # eye size relative to the standard eye
    centre_px: np.ndarray  # resting place of the head, shape (2,)
    background: np.ndarray  # uint8, larger than the canvas


def draw_appearance(rng: np.random.Generator) -> Appearance:
    """Draw a person, their clothes, place and light."""
    skin = mix(SKINS[rng.integers(len(SKINS))], SKINS[rng.integers(len(SKINS))], 0.25)
    hair = mix(HAIRS[rng.integers(len(HAIRS))], (0, 0, 0), rng.uniform(0, 0.15))
    side = rng.choice([-1.0, 1.0])
    style = str(rng.choice(HAIR_STYLES))
    bearded = rng.random() < (0.1 if style in ("long_fringe", "bun") else 0.3)
    return Appearance(
        skin=skin,
        hair=hair,
        iris=IRISES[rng.integers(len(IRISES))],
        clothes=_vivid(rng, (0.2, 0.9), (0.25, 0.95)),
        trim=_vivid(rng, (0.0, 0.6), (0.1, 1.0)),
        hair_style=style,
        neckline=str(rng.choice(["round", "vee", "collar", "stripe", "closed"])),
        glasses=bool(rng.random() < 0.25),
        beard=bearded,
        moustache=bool(bearded or rng.random() < 0.06),
        light=np.array([side * rng.uniform(0.6, 1.0), -rng.uniform(0.2, 0.8)]),
        head_px=rng.uniform(42, 48),
        width=rng.uniform(0.93, 1.08),
        eye=rng.uniform(0.92, 1.15),
        centre_px=np.array([64 + rng.uniform(-7, 7), 58 + rng.uniform(-4, 6)]),
        background=_draw_background(rng, skin),
    )


def _draw_background(rng: np.random.Generator, skin: Color) -> np.ndarray:
    """Paint a gradient with shapes, unlike the skin so that the head stands out."""
    extent = CANVAS_PX + 2 * BACKGROUND_PAD_PX
    colors = [_vivid(rng, (0.1, 0.7), (0.2, 0.95)) for _ in range(6)]
    colors.sort(key=lambda color: -np.abs(np.subtract(color, skin)).sum())
    angle = rng.uniform(0, 2 * np.pi)
    grid = np.linspace(-0.5, 0.5, extent)
    ramp = np.cos(angle) * grid[None] + np.sin(angle) * grid[:, None] + 0.5
    image = np.clip(
        (1 - ramp[..., None]) * np.array(colors[0]) + ramp[..., None] * np.array(colors[1]), 0, 255
    ).astype(np.uint8)
    kind = rng.choice(["blobs", "stripes", "window", "shelf"])
    tints = [mix(colors[0], _vivid(rng, (0, 0.8), (0.2, 1.0)), 0.45) for _ in range(8)]
    for number, tint in enumerate(tints):
        x, y = rng.integers(0, extent, 2).tolist()
        if kind == "blobs":
            cv2.circle(image, (x, y), int(rng.integers(8, 34)), tint, -1, cv2.LINE_AA)
        elif kind == "stripes":
            left = number * 28 + x % 10
            cv2.rectangle(image, (left, 0), (left + 10 + y % 8, extent), tint, -1)
        elif kind == "window":
            left, top = 20 + 70 * (number % 3) + x % 6, 10 + 75 * (number // 3)
            cv2.rectangle(image, (left, top), (left + 52, top + 60), tint, -1)
        else:
            cv2.rectangle(image, (0, 22 + 27 * number), (extent, 26 + 27 * number), tints[0], -1)
            cv2.rectangle(image, (x, 4 + 27 * number), (x + 22, 22 + 27 * number), tint, -1)
    return cv2.GaussianBlur(image, (0, 0), rng.uniform(2.0, 4.5))


def mix(first: Color, second: Color, share: Number) -> Color:
    """Blend two colours; share 1 gives the second."""
    red, green, blue = ((1 - share) * a + share * b for a, b in zip(first, second, strict=True))
    return red, green, blue


def shade(color: Color, factor: Number) -> Color:
    """Darken (factor < 1) or brighten a colour."""
    red, green, blue = (min(255.0, factor * c) for c in color)
    return red, green, blue


def _vivid(
    rng: np.random.Generator, saturation: tuple[Number, Number], value: tuple[Number, Number]
) -> Color:
    hsv = [rng.uniform(0, 180), 255 * rng.uniform(*saturation), 255 * rng.uniform(*value)]
    pixel = np.array([[hsv]]).astype(np.uint8)
    red, green, blue = cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0].tolist()
    return red, green, blue
