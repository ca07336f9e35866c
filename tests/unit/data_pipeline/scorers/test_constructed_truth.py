"""Scores of clips that are made so that their truth is known, as tables of truth and measure."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from magicdistill.data_pipeline.media.video import frames_in
from magicdistill.data_pipeline.scorers.base import Frame, Scorer, Values
from magicdistill.data_pipeline.scorers.colour import Colour
from magicdistill.data_pipeline.scorers.frozen import Frozen
from magicdistill.data_pipeline.scorers.letterbox import Letterbox
from magicdistill.data_pipeline.scorers.phash import PHash
from tests.unit.data_pipeline.pictures import picture, view

WIDTH, HEIGHT = 320, 240


def scores_of(scorer: Scorer, frames: Sequence[np.ndarray | Frame]) -> Values:
    """Return the scores of frames that are all looked at, an eighth of a second apart."""
    looks, last = [], None
    for shown in frames:
        frame = shown if isinstance(shown, Frame) else Frame(shown)
        looks.append(scorer.look(frame, last))
        last = frame
    return scorer.summary(looks, 0.125)


def noisy(frames: Sequence[np.ndarray], sigma: float) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.clip(f + rng.normal(0, sigma, f.shape), 0, 255).astype(np.uint8) for f in frames]


def encoded(frames: Sequence[np.ndarray], crf: int, path: Path) -> Sequence[Frame]:
    """Return frames as scoring sees them in a file."""
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=24, options={"crf": str(crf)})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return [frame.for_scorers(()) for frame in frames_in(path)]


def still(num_frames: int = 25) -> list[np.ndarray]:
    return [picture(1, HEIGHT, WIDTH)] * num_frames


def sliding(px: float) -> list[np.ndarray]:
    whole = picture(1, HEIGHT, WIDTH + 40)
    return [view(whole, HEIGHT, WIDTH, x=px * at, y=0.0) for at in range(25)]


def growing(zoom: float) -> list[np.ndarray]:
    whole = picture(1, HEIGHT, WIDTH)
    scales = [cv2.getRotationMatrix2D((160, 120), 0, zoom**at) for at in range(25)]
    return [cv2.warpAffine(whole, scale, (WIDTH, HEIGHT)) for scale in scales]


def nodding(px: float) -> list[np.ndarray]:
    """A thing of a fiftieth of the picture slides over a still one."""
    frames = np.repeat(picture(1, HEIGHT, WIDTH)[None], 25, axis=0)
    for at, frame in enumerate(frames):
        frame[100:140, 100:140] = view(picture(2, 60, 80), 40, 40, x=px * at, y=5.0)
    return list(frames)


def darkening() -> list[np.ndarray]:
    return [(frame * (1 - 0.02 * at)).astype(np.uint8) for at, frame in enumerate(still())]


@pytest.mark.parametrize("crf", [None, 18, 28])
@pytest.mark.parametrize(
    ("make", "sigma", "is_still"),
    [
        (still, 0.0, True),
        (still, 3.0, True),
        (still, 5.0, True),
        (lambda: sliding(0.1), 0.0, False),
        (lambda: sliding(0.1), 3.0, False),
        (lambda: growing(1.001), 3.0, False),
        (lambda: nodding(0.3), 3.0, False),
        (darkening, 3.0, False),
    ],
    ids=("still", "s3", "s5", "slide", "slide s3", "zoom s3", "part s3", "darkening s3"),
)
def test_a_still_picture_is_frozen_whatever_its_noise_and_a_slow_movement_is_not(
    make: Any, sigma: float, is_still: bool, crf: int | None, tmp_path: Path
):
    frames = noisy(make(), sigma)
    shown = frames if crf is None else encoded(frames, crf, tmp_path / "clip.mp4")
    longest_s = scores_of(Frozen(), shown[::3])["longest_s"]
    assert longest_s is not None
    assert longest_s >= 0.75 if is_still else longest_s <= 0.25


def framed(
    level: int, top: int = 0, bottom: int = 0, left: int = 0, right: int = 0, text: bool = False
) -> list[np.ndarray]:
    """A sliding picture with bars of one level, in which there may be text."""
    frames = []
    for at in range(3):
        frame = view(picture(1, 360, 700), 360, 640, x=10.0 * at, y=0.0)
        frame = cv2.copyMakeBorder(
            frame, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(level,) * 3
        )
        if text:
            ink = (255,) * 3 if level < 128 else (0,) * 3
            cv2.putText(frame, f"THE LAST OF THE NEWS {at}", (40, 30), 0, 0.8, ink, 2)
            cv2.putText(frame, f"what somebody says {at}", (40, len(frame) - 30), 0, 1, ink, 2)
        frames.append(frame)
    return frames


def beside_a_blurred_copy(sigma: float, brightness: float) -> list[np.ndarray]:
    frames = []
    for at in range(3):
        narrow = view(picture(1, 360, 300), 360, 200, x=10.0 * at, y=0.0)
        wide = cv2.resize(narrow, (640, 1152))[396:756]
        frame = (cv2.GaussianBlur(wide, (0, 0), sigma) * brightness).astype(np.uint8)
        frame[:, 220:420] = narrow
        frames.append(frame)
    return frames


def head_before_a_wall(level: int) -> list[np.ndarray]:
    """A head that sways before an even wall: a straight edge at the shoulders' end only."""
    frames = []
    for at in range(3):
        frame = np.full((360, 640, 3), level, np.uint8)
        body = np.zeros((360, 640), np.uint8)
        cv2.ellipse(body, (300 + 8 * at, 150), (80, 110), 0, 0, 360, 1, -1)
        cv2.ellipse(body, (300 + 8 * at, 380), (230, 140), 0, 0, 360, 1, -1)
        frame[body > 0] = picture(1, 360, 640)[body > 0]
        frames.append(frame)
    return frames


def fading_backdrop() -> list[np.ndarray]:
    frame = picture(1, 360, 640) * np.clip((np.arange(640) - 40) / 200, 0, 1)[None, :, None]
    return [frame.astype(np.uint8)] * 3


def before_curtains() -> list[np.ndarray]:
    """A sliding picture between stripes of two colours and widths."""
    frames = framed(0, left=60, right=100)
    for frame in frames:
        frame[:, :60], frame[:, -100:] = 120, 170
    return frames


def title_card(colour: tuple[int, int, int]) -> list[np.ndarray]:
    frame = np.full((360, 640, 3), colour, np.uint8)
    for line, text in enumerate(("THE STORY", "of a river", "part one")):
        cv2.putText(frame, text, (60, 120 + 80 * line), 0, 2.2, (255, 255, 255), 5)
    return [frame] * 3


NONE = (0.0, 0.0, 0.0, 0.0)
BARS: dict[str, tuple[Callable[[], list[np.ndarray]], tuple[float, float, float, float]]] = {
    **{f"level {n}": (partial(framed, n, 60, 60), (0.125, 0.125, 0, 0)) for n in (0, 16, 235, 255)},
    "grey": (partial(framed, 200, 60, 60), (0.125, 0.125, 0, 0)),
    "one side": (partial(framed, 0, left=80), (0, 0, 80 / 720, 0)),
    "uneven sides": (partial(framed, 255, left=100, right=40), (0, 0, 100 / 780, 40 / 780)),
    "all sides": (partial(framed, 0, 60, 60, 80, 80), (0.125, 0.125, 0.1, 0.1)),
    "text on black": (partial(framed, 0, 60, 90, text=True), (60 / 510, 90 / 510, 0, 0)),
    "text on white": (partial(framed, 255, 60, 90, text=True), (60 / 510, 90 / 510, 0, 0)),
    "blurred": (partial(beside_a_blurred_copy, 12, 1.0), (0, 0, 220 / 640, 220 / 640)),
    "blurred, darker": (partial(beside_a_blurred_copy, 20, 0.6), (0, 0, 220 / 640, 220 / 640)),
    "no bars": (partial(framed, 0), NONE),
    "a head before a dark wall": (partial(head_before_a_wall, 12), NONE),
    "a head before a white wall": (partial(head_before_a_wall, 250), NONE),
    "stripes of two colours": (before_curtains, NONE),
    "a stripe at one side": (partial(framed, 120, left=60), NONE),
    "a backdrop that fades": (fading_backdrop, NONE),
    "a blue title card": (partial(title_card, (20, 40, 160)), NONE),
    "a black title card": (partial(title_card, (0, 0, 0)), NONE),
    "black": (lambda: [np.zeros((360, 640, 3), np.uint8)] * 3, NONE),
}


@pytest.mark.parametrize("crf", [None, 30])
@pytest.mark.parametrize("name", BARS)
def test_bars_are_as_wide_as_they_were_made(name: str, crf: int | None, tmp_path: Path):
    make, truth = BARS[name]
    frames = make()
    shown = frames if crf is None else encoded(frames, crf, tmp_path / "clip.mp4")
    scores = scores_of(Letterbox(), shown)
    height, width = frames[0].shape[:2]
    for side, share, length in zip(
        ("top", "bottom", "left", "right"), truth, (height, height, width, width), strict=True
    ):
        measured = scores[side]
        assert measured is not None
        assert abs(measured - share) * length <= (3 if share else 0), (side, scores)
    outside = 1 - (1 - truth[0] - truth[1]) * (1 - truth[2] - truth[3])
    assert scores["share"] == pytest.approx(outside, abs=0.03)


def test_a_grey_copy_has_less_colour_than_its_original():
    frames = [picture(seed, 120, 160) for seed in range(3)]
    grey = [np.repeat(f.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8) for f in frames]
    red = np.zeros((60, 80, 3), np.uint8)
    red[:, :40, 0] = 255
    assert scores_of(Colour(), grey) == {"mean": 0}
    assert (scores_of(Colour(), frames)["mean"] or 0) > 0.1
    assert scores_of(Colour(), [red]) == {"mean": pytest.approx(0.5)}
    dark_noise = noisy([np.full((240, 320, 3), 4, np.uint8)], 3)
    assert (scores_of(Colour(), dark_noise)["mean"] or 1) < 0.03


def hashes(frames: Sequence[np.ndarray]) -> np.ndarray:
    scorer = PHash()
    blob = scorer.blob([scorer.look(Frame(frame), None) for frame in frames])
    return np.frombuffer(blob, np.uint64).reshape(2, -1)  # as it is, mirrored


def grey(frame: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def bits_apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.bitwise_count(one ^ other).mean())


CLIP = [view(picture(7, 400, 600), 360, 480, x=10.0 * at, y=20.0) for at in range(8)]


@pytest.mark.parametrize(
    ("name", "frames", "is_mirrored"),
    [
        ("grey", [grey(f) for f in CLIP], False),
        ("brighter", [np.clip(f.astype(int) + 25, 0, 255).astype(np.uint8) for f in CLIP], False),
        ("smaller", [cv2.resize(f, (160, 120), interpolation=3) for f in CLIP], False),
        ("cropped", [f[4:-4, 5:-5] for f in CLIP], False),
        ("mirrored", [f[:, ::-1].copy() for f in CLIP], True),
        ("mirrored, smaller", [cv2.resize(f[:, ::-1], (160, 120)) for f in CLIP], True),
    ],
)
def test_a_copys_hash_is_near_its_originals(name: str, frames: list[np.ndarray], is_mirrored: bool):
    original, copy = hashes(CLIP), hashes(frames)
    assert bits_apart(original[0], copy[int(is_mirrored)]) <= 6
    assert bits_apart(original[1], copy[int(not is_mirrored)]) <= 6
    assert bits_apart(original[0], copy[int(not is_mirrored)]) > 15


def test_a_blob_has_eight_bytes_for_each_frame_and_then_for_each_mirrored_one():
    scorer = PHash()
    blob = scorer.blob([scorer.look(Frame(frame), None) for frame in CLIP])
    mirrored = scorer.blob([scorer.look(Frame(f[:, ::-1].copy()), None) for f in CLIP])
    assert len(blob) == len(mirrored) == 128
    assert bits_apart(*(np.frombuffer(b, np.uint64) for b in (blob[64:], mirrored[:64]))) <= 1
