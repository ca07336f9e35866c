"""The portrait world: reproducible, moving, unbiased, and written as playable files."""

from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from magicdistill.data_pipeline.media.video import write_mp4
from magicdistill.data_pipeline.sources.portrait_world.motion import Motion, draw_motion
from magicdistill.data_pipeline.sources.portrait_world.world import render_clip, write_clips


def _frames(path: Path) -> tuple[np.ndarray, float]:
    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate or 0)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames), rate


def test_a_clip_is_a_pure_function_of_its_seed():
    assert np.array_equal(render_clip(3, 9), render_clip(3, 9))
    assert not np.array_equal(render_clip(3, 9), render_clip(4, 9))


@pytest.mark.parametrize(("num_frames", "size"), [(1, 64), (17, 64), (5, 32), (5, 128)])
def test_a_clip_has_the_asked_shape(num_frames: int, size: int):
    clip = render_clip(7, num_frames, size)
    assert clip.shape == (num_frames, size, size, 3)
    assert clip.dtype == np.uint8


def test_the_size_changes_only_the_resolution_and_the_lens():
    large, small = render_clip(5, 4, 128), render_clip(5, 4, 64)
    shrunk = np.stack([cv2.resize(f, (64, 64), interpolation=cv2.INTER_AREA) for f in large])
    assert np.abs(shrunk.astype(float) - small).mean() < 3


def test_clips_move_without_teleporting():
    clips = np.stack([render_clip(seed) for seed in range(12)]).astype(np.int16)
    change = np.abs(np.diff(clips, axis=1)).mean((2, 3, 4))
    assert 0.8 < change.mean() < 9
    assert change.mean(1).min() > 0.2
    assert change.max() < 30


@pytest.fixture(scope="module")
def motions() -> list[Motion]:
    return [draw_motion(np.random.default_rng(seed), 51) for seed in range(600)]


def test_every_track_starts_in_motion_and_stays_in_range(motions: list[Motion]):
    yaw = np.stack([motion.yaw for motion in motions])
    assert np.abs(yaw).max() < np.deg2rad(50)
    assert np.diff(yaw).std(0)[0] == pytest.approx(np.diff(yaw).std(0).mean(), rel=0.5)
    for motion in motions:
        assert motion.open.min() >= 0 and motion.open.max() <= 1
        assert motion.lid.min() >= 0 and motion.lid.max() <= 1


def test_heads_turn_left_as_often_as_right(motions: list[Motion]):
    for drift in (
        np.array([motion.yaw[-1] - motion.yaw[0] for motion in motions]),
        np.array([motion.shift[-1, 0] - motion.shift[0, 0] for motion in motions]),
    ):
        standard_error = drift.std() / np.sqrt(len(drift))
        assert abs(drift.mean()) < 4 * standard_error
        assert 0.45 < (drift > 0).mean() < 0.55


def test_written_clips_play_and_look_like_the_rendered_ones(tmp_path: Path):
    paths = write_clips(tmp_path / "clips", [1, 20], num_frames=17, fps=24)
    assert [path.name for path in paths] == ["portrait-000001.mp4", "portrait-000020.mp4"]
    assert sorted((tmp_path / "clips").iterdir()) == paths
    frames, rate = _frames(paths[1])
    assert frames.shape == (17, 64, 64, 3)
    assert rate == 24
    assert np.abs(frames.astype(float) - render_clip(20, 17)).mean() < 6


def test_existing_clips_are_kept(tmp_path: Path):
    (tmp_path / "portrait-000001.mp4").write_bytes(b"kept")
    first, second = write_clips(tmp_path, [1, 2], num_frames=3)
    assert first.read_bytes() == b"kept"
    assert second.stat().st_size > 500


@pytest.mark.parametrize(
    "frames",
    [np.zeros((2, 8, 8), np.uint8), np.zeros((2, 8, 8, 3)), np.zeros((0, 8, 8, 3), np.uint8)],
)
def test_frames_of_the_wrong_kind_are_refused(tmp_path: Path, frames: np.ndarray):
    with pytest.raises(ValueError, match="expected uint8"):
        write_mp4(tmp_path / "clip.mp4", frames, 24)
    assert not list(tmp_path.iterdir())
