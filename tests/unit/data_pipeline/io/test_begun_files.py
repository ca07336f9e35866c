"""What was begun and not finished goes, whoever began it."""

import os
from pathlib import Path

import numpy as np
import pytest

from magicdistill.data_pipeline.io.whole_files import without_leftovers, write_whole
from magicdistill.data_pipeline.media.video import write_frames
from magicdistill.models.metrics.frechet import save_arrays


class StoppedError(BaseException):
    """Stands for a Ctrl-C or a SIGTERM in the middle of the work."""


def stop_after(path: Path) -> None:
    path.write_text("half")
    raise StoppedError


def frames():
    yield np.zeros((16, 16, 3), np.uint8)
    raise StoppedError


class Stopping:
    """Stops numpy in the middle of a file."""

    def __reduce__(self) -> str:
        raise StoppedError


WRITERS = {
    "whole file": lambda path: write_whole(path, stop_after),
    "video": lambda path: write_frames(path, frames(), 24),
    "arrays": lambda path: save_arrays(path, {"a": np.array([Stopping()], dtype=object)}),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_writer_that_is_stopped_leaves_the_file_as_it_was(kind: str, tmp_path: Path):
    path = tmp_path / "kept"
    path.write_text("before")
    with pytest.raises(StoppedError):
        WRITERS[kind](path)
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("kept", "before")]


def test_what_workers_had_begun_goes_where_their_job_is_stopped(tmp_path: Path):
    out, other = tmp_path / "v[1].mp4", tmp_path / "other.mp4"
    (tmp_path / f".v[1].mp4.{os.getpid()}.tmp").write_text("half")
    (tmp_path / f".other.mp4.{os.getpid()}.tmp").write_text("of another job")
    out.write_text("before")
    with pytest.raises(StoppedError), without_leftovers([out]):
        raise StoppedError
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        f".{other.name}.{os.getpid()}.tmp",
        out.name,
    ]
