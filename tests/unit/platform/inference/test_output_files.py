"""No file of a user is written over."""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from magicdistill.data_pipeline.media.video import write_mp4
from magicdistill.jobs import sample
from magicdistill.platform.export.pretrained_model import ASSETS, find_pretrained
from magicdistill.platform.inference.orders import NO_IMAGE, Order
from magicdistill.platform.inference.output_files import demand_free, is_own
from magicdistill.platform.inference.sample_video import VideoSampler
from magicdistill.platform.runs.logs import ExplainedError

FACE = ASSETS / "portrait-tiny" / "face.png"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def foreign_video(path: Path) -> None:
    write_mp4(path, np.zeros((2, 16, 16, 3), np.uint8), 24)


def test_a_users_photograph_is_never_overwritten(tmp_path: Path):
    image = Path(shutil.copy(FACE, tmp_path / "me.png"))
    order = Order(image, tmp_path / "me.mp4")
    sampler = VideoSampler(find_pretrained("student-4step"))
    sampler.make(order)
    assert sorted(contents(tmp_path)) == ["me.mp4", "me.png", "me.sheet.png"]
    assert image.read_bytes() == FACE.read_bytes()
    assert is_own(order.out) and is_own(order.sheet) and not is_own(image)
    demand_free([replace(order, seed=1)])  # what a job made it may make again
    with pytest.raises(ExplainedError, match=r"me\.sheet\.png is an input"):
        sampler.make(Order(order.sheet, order.out))


def linked(path: Path, target: Path) -> None:
    path.symlink_to(target.name)


FOREIGN: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a video of somebody else": ("me.mp4", foreign_video),
    "a text named as a video": ("me.mp4", lambda path: path.write_text("mine")),
    "a picture of somebody else": ("me.sheet.png", lambda path: Image.new("L", (2, 2)).save(path)),
    "a text named as the sheet": ("me.sheet.png", lambda path: path.write_text("mine")),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_no_job_made_is_written_over_by_force_alone(kind: str, tmp_path: Path):
    name, write = FOREIGN[kind]
    write(tmp_path / name)
    order = Order(FACE, tmp_path / "me.mp4")
    with pytest.raises(ExplainedError, match=rf"{name} is there, .*--force"):
        demand_free([order])
    demand_free([order], force=True)


def test_a_painting_is_written_over_nothing_foreign_either(tmp_path: Path):
    (tmp_path / "me.prior.png").write_text("mine")
    order = Order(NO_IMAGE, tmp_path / "me.mp4", prompt="a face")
    with pytest.raises(ExplainedError, match=r"me\.prior\.png is there"):
        demand_free([order])
    demand_free([replace(order, image=FACE)])  # nothing is painted


INPUTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "the image is the video": ("me.mp4", lambda path: shutil.copy(FACE, path)),
    "the image is the sheet": ("me.sheet.png", lambda path: shutil.copy(FACE, path)),
    "the sheet is a link to the image": (
        "me.png",
        lambda path: (shutil.copy(FACE, path), linked(path.with_name("me.sheet.png"), path)),
    ),
    "the sheet is another name of the image": (
        "me.png",
        lambda path: (shutil.copy(FACE, path), os.link(path, path.with_name("me.sheet.png"))),
    ),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_an_input_is_not_written_over_even_by_force(kind: str, tmp_path: Path):
    name, write = INPUTS[kind]
    write(tmp_path / name)
    order = Order(tmp_path / name, tmp_path / "me.mp4")
    for force in (False, True):
        with pytest.raises(ExplainedError, match="is an input of this job"):
            demand_free([order], force=force)


def test_no_video_of_a_list_is_written_over_the_image_of_another_or_the_list(tmp_path: Path):
    shutil.copy(FACE, tmp_path / "b.sheet.png")
    orders = [Order(tmp_path / "b.sheet.png", tmp_path / "a.mp4"), Order(FACE, tmp_path / "b.mp4")]
    with pytest.raises(ExplainedError, match=r"b\.sheet\.png is an input"):
        demand_free(orders, force=True)
    (tmp_path / "c.mp4").write_text("{}")
    with pytest.raises(ExplainedError, match=r"c\.mp4 is an input"):
        demand_free([Order(FACE, tmp_path / "c.mp4")], [tmp_path / "c.mp4"], force=True)


REFUSED = {
    "another container": (["--image", "me.png", "--out", "me.mov"], "me.mov: a video is an MP4"),
    "no suffix": (["--image", "me.png", "--out", "me"], "me: a video is an MP4"),
    "the image itself": (["--image", "me.png", "--out", "me.png"], "me.png: a video is an MP4"),
    "a folder": (["--image", "me.png", "--out", "."], "it is a folder; give a file in it"),
    "in a file": (["--image", "me.png", "--out", "me.png/v.mp4"], "me.png is a file"),
    "a video for many": (["--inputs", "l.jsonl", "--out", "v.mp4"], "give a folder for them"),
    "a file for many": (["--inputs", "l.jsonl", "--out", "me.png"], "me.png is a file"),
    "a foreign video": (["--image", "me.png", "--out", "other.mp4"], "--force to write over it"),
    "a name that leads elsewhere": (["--inputs", "l.jsonl", "--out", "new"], "line 1: name"),
    "no image": (["--image", "none.png", "--out", "v.mp4"], "no image none.png"),
    "floats": (["--image", "hdr.tiff", "--out", "v.mp4"], "hdr.tiff: its pixels are floats"),
    "no length": (["--image", "me.png", "--out", "v.mp4", "--seconds", "0"], "--seconds 0"),
    "a prompt": (["--image", "me.png", "--out", "v.mp4", "--prompt", "a"], "--prompt: this model"),
    "no model": (["--image", "me.png", "--out", "v.mp4", "--model", "no"], "--model no: neither"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_the_job_refuses_before_anything_is_sampled(kind, tmp_path, monkeypatch, capsys):
    arguments, reason = REFUSED[kind]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sample.py", *arguments])
    monkeypatch.setattr(sample.logs, "configure", lambda *, verbose: None)  # it is for processes
    shutil.copy(FACE, "me.png")
    Image.fromarray(np.full((2, 2), 7.0, np.float32)).save("hdr.tiff")
    Path("l.jsonl").write_text('{"image": "me.png", "name": "../me"}')
    foreign_video(Path("other.mp4"))
    before = contents(tmp_path)
    with pytest.raises(SystemExit) as left:
        sample.main()
    assert left.value.code == 2
    assert reason in capsys.readouterr().err
    assert contents(tmp_path) == before
