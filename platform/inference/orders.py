"""What videos to make: orders, and lists of them. Imports no PyTorch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, ValidationError

from magicdistill.data_pipeline.config import Bucket, nearest_bucket
from magicdistill.data_pipeline.io.user_files import read_text
from magicdistill.data_pipeline.media import images
from magicdistill.models.config import Config
from magicdistill.models.diffusion.context_windows import ContextWindows
from magicdistill.models.paths import LocalFile
from magicdistill.platform.export.pretrained_model import Pretrained
from magicdistill.platform.runs.logs import ExplainedError

NO_IMAGE = Path()
"""The image of an order whose first frame is still to be made from its prompt."""
NO_ENCODERS = (
    "--prompt: this model comes without text encoders; name a diffusers folder that has "
    "text_encoder and tokenizer with --encoders, or leave --prompt out"
)
Fit = Literal["face", "crop", "pad"]
"""How a picture of another aspect becomes a first frame: cropped about its faces, cropped about its
centre, or whole with its border colours around it."""


@dataclass(frozen=True)
class Order:
    """One video to make."""

    image: Path
    out: Path
    """The MP4 file; its contact sheet lies beside it."""
    seed: int = 0
    prompt: str | None = None
    """The prompt; None is the null prompt."""
    seconds: float | None = None
    """Length of the video; None is one context window of the model."""
    overlap: int = 5
    """Frames that neighbouring context windows of a long video share."""
    pull: float = 0.2
    """Share, from 0 to 1, by which the start of each context window is moved towards the coarse
    picture of the first frame."""
    fit: Fit = "face"
    """How the image is brought to the model's aspect."""

    @property
    def sheet(self) -> Path:
        """The contact sheet."""
        return self.out.with_suffix(".sheet.png")

    @property
    def painting(self) -> Path:
        """The first frame that is painted where the order has no image."""
        return self.out.with_suffix(".prior.png")

    @property
    def files(self) -> list[Path]:
        """All files that are written."""
        painted = [self.painting] if self.image == NO_IMAGE else []
        return [self.out, self.sheet, *painted]


class Line(Config):
    """One line of a list of inputs."""

    image: LocalFile | None = None
    """The first frame; a relative path starts at the folder of the list, and null makes one for the
    prompt."""
    name: Annotated[str, Field(pattern=r"^[^/\\]+$")] | None = None
    """Name of the video, a file name without its suffix; null joins the line number and the name of
    the image."""
    prompt: str | None = None
    seed: int | None = None
    """Seed of the noise; null is the seed of the job plus the line number, counted from 0."""
    seconds: float | None = None


def read_orders(path: Path, folder: Path, defaults: Order) -> list[Order]:
    """Read a JSONL list of inputs; `defaults` fills in what a line leaves out.

    Raises ExplainedError that names the wrong line, or the names that occur twice.
    """
    if not path.is_file():
        raise ExplainedError(f"--inputs: there is no file {path}")
    texts = [text for text in read_text(path).splitlines() if text.strip()]
    lines = [_parse(path, number, text) for number, text in enumerate(texts)]
    orders = [
        _order(line, number, path.parent, folder, defaults) for number, line in enumerate(lines)
    ]
    outs = [order.out for order in orders]
    if twice := {out.stem for out in outs if outs.count(out) > 1}:
        raise ExplainedError(f"{path}: several videos have the name {', '.join(sorted(twice))}")
    return orders


def check(model: Pretrained, order: Order) -> None:
    """Raise ExplainedError if a model cannot make an order; needs no network to be loaded."""
    bucket = model.buckets[0]
    if order.image != NO_IMAGE:
        height, width = read_picture(order.image).shape[:2]
        bucket = nearest_bucket(width, height, model.buckets)
        if order.prompt is not None and model.encoders is None:
            raise ExplainedError(NO_ENCODERS)
    plan_windows(order, bucket)


def plan_windows(order: Order, bucket: Bucket) -> ContextWindows:
    """Return the context windows of an order; raise ExplainedError if there cannot be any."""
    try:
        total = bucket.num_frames if order.seconds is None else round(order.seconds * bucket.fps)
        return ContextWindows(total, bucket.num_frames, order.overlap)
    except (ValueError, OverflowError) as error:
        raise ExplainedError(
            f"--seconds {order.seconds}, --overlap {order.overlap}: {error}"
        ) from None


def read_picture(path: Path) -> np.ndarray:
    """Return a picture as upright uint8 RGB (y x 3); raise ExplainedError if it cannot be read."""
    try:
        return images.read_image(path)
    except images.ImageError as error:
        raise ExplainedError(str(error)) from None


def _parse(path: Path, number: int, text: str) -> Line:
    try:
        return Line.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ExplainedError(
            f"{path}, line {number + 1}: {where} {first['msg']}; a line is "
            f"{json.dumps({'image': 'face.png'})} with any of {', '.join(Line.model_fields)}"
        ) from None


def _order(line: Line, number: int, beside: Path, folder: Path, defaults: Order) -> Order:
    given = f"{number:04d}-{line.image.stem}" if line.image else f"{number:04d}"
    name = line.name or given
    return Order(
        image=beside / line.image if line.image else defaults.image,
        out=folder / f"{name}.mp4",
        seed=defaults.seed + number if line.seed is None else line.seed,
        prompt=defaults.prompt if line.prompt is None else line.prompt,
        seconds=defaults.seconds if line.seconds is None else line.seconds,
        overlap=defaults.overlap,
        pull=defaults.pull,
        fit=defaults.fit,
    )
