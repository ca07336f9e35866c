"""Where videos may be written: over no input, and over no file that a job did not make."""

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from magicdistill.platform.inference.orders import NO_IMAGE, Order
from magicdistill.platform.runs.logs import ExplainedError

MARK = "magicdistill"
"""Begins the comment of every video, and is the key of the text in every PNG, that a job makes."""


def demand_video_path(out: Path) -> None:
    """Raise ExplainedError unless a path may become a video."""
    if out.is_dir():
        raise ExplainedError(f"--out {out}: it is a folder; give a file in it, as {out / 'a.mp4'}")
    if out.suffix.lower() != ".mp4":
        raise ExplainedError(f"--out {out}: a video is an MP4; give a name that ends in .mp4")
    _demand_folder(out, out.absolute().parent)


def demand_folder_path(out: Path) -> None:
    """Raise ExplainedError unless a path may become the folder of many videos."""
    if out.suffix.lower() == ".mp4":
        raise ExplainedError(f"--out {out}: --inputs makes many videos; give a folder for them")
    _demand_folder(out, out.absolute())


def _demand_folder(out: Path, folder: Path) -> None:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise ExplainedError(f"--out {out}: {there} is a file, not a folder; give another path")
    if not os.access(there, os.W_OK):
        raise ExplainedError(f"--out {out}: {there} cannot be written to; give another path")


def demand_free(
    orders: Sequence[Order], inputs: Sequence[Path] = (), *, force: bool = False
) -> None:
    """Raise ExplainedError where an order would write over a file that is not the jobs' own.

    A file that a job made before is replaced; any other only with `force`, and an input never:
    the images of the orders, and `inputs`.
    """
    read = [*inputs, *(order.image for order in orders if order.image != NO_IMAGE)]
    identities = {_identity(path) for path in read if path.exists()}
    for order in orders:
        for path in order.files:
            if not path.exists():
                continue
            if _identity(path) in identities:
                raise ExplainedError(f"--out: {path} is an input of this job; give another name")
            if path.is_dir():
                raise ExplainedError(f"--out: {path} is a folder; give another name, or move it")
            if not force and not is_own(path):
                raise ExplainedError(
                    f"--out: {path} is there, and is not a file that this job made; give another "
                    "name, or --force to write over it"
                )


def is_own(path: Path) -> bool:
    """Tell by its mark whether a video or a PNG was made by one of these jobs."""
    if path.suffix == ".png":
        return read_mark(path) is not None
    from magicdistill.data_pipeline.media.video import (  # decoders, which --help does not need
        VideoError,
        read_comment,
    )

    try:
        return read_comment(path).startswith(f"{MARK} ")
    except VideoError:
        return False


def read_mark(path: Path) -> str | None:
    """Return the text beside MARK in a PNG that can be read whole, otherwise None."""
    try:
        with Image.open(path) as image:
            image.load()
            return image.info.get(MARK)
    except (OSError, SyntaxError, ValueError):
        return None


def _identity(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_dev, facts.st_ino
