"""TransNetV2's own network finds the cut of a film put together from two."""

from pathlib import Path

import cv2
import numpy as np

from magicdistill.data_pipeline.config import Measures
from magicdistill.data_pipeline.media.sandbox import Sandbox
from magicdistill.data_pipeline.media.video import decode, write_mp4
from magicdistill.data_pipeline.rows import Video
from magicdistill.data_pipeline.sources.package_clips import find_clips
from magicdistill.data_pipeline.stages.score import score_video

REAL = {path.name: path for path, _ in find_clips()}


def test_transnet_finds_the_cut_that_was_drawn(tmp_path: Path):
    path = tmp_path / "film.mp4"
    bikes = [cv2.resize(frame, (176, 144)) for frame in decode(REAL["bikes.mp4"])]
    head = [cv2.resize(frame, (176, 144)) for frame in decode(REAL["carphone_pristine.mp4"])]
    write_mp4(path, np.stack(bikes[40:60] + head[:20]), 24)
    video = Video("v", "s", path.as_uri(), str(path), "f", "l", "general", split_shots=True)
    with Sandbox(120.0) as sandbox:  # its package changes the process that imports it
        outcome = sandbox.call(score_video, video, path, Measures(shots="transnetv2"))
    assert [(clip.start, clip.stop) for clip in outcome.value] == [(0, 16), (24, 40)]
