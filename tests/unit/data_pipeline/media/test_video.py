from pathlib import Path

import decord
import numpy as np
import pytest

from magicdistill.data_pipeline.media.video import (
    VideoError,
    decode,
    probe,
    read_frames,
    write_mp4,
)
from magicdistill.data_pipeline.sources.portrait_world.world import render_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    write_mp4(path, render_clip(1, num_frames=40), 24)
    return path


def test_what_is_written_is_read_again(clip: Path):
    frames = np.stack(list(decode(clip)))
    error = frames.astype(float) - render_clip(1, num_frames=40)
    assert frames.shape == (40, 64, 64, 3)
    assert np.sqrt((error**2).mean()) < 8  # H.264, chroma at half size


def test_decord_reads_the_same_frames_of_a_clean_clip(clip: Path):
    other = decord.VideoReader(str(clip), num_threads=1)
    ours = list(decode(clip))
    assert len(other) == len(ours)
    assert all(np.array_equal(other[i].asnumpy(), frame) for i, frame in enumerate(ours))
    (alone,) = read_frames(clip, [17])
    assert np.array_equal(other[17].asnumpy(), alone)


def test_chosen_frames_are_those_of_a_full_pass(clip: Path):
    indices = [3, 4, 4, 17, 39]
    chosen = list(read_frames(clip, indices))
    full = list(decode(clip))
    assert all(np.array_equal(a, full[i]) for a, i in zip(chosen, indices, strict=True))


def test_the_header_is_read_without_decoding(clip: Path):
    header = probe(clip)
    assert (header.width, header.height, header.fps) == (64, 64, 24.0)
    assert (header.num_frames, header.codec) == (40, "h264")


def test_a_truncated_file_raises_and_never_pads(clip: Path, tmp_path: Path):
    data = clip.read_bytes()
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(data[: len(data) * 2 // 3])
    frames = []
    with pytest.raises(VideoError, match="corrupt"):
        for frame in decode(broken):
            frames.append(frame)
    assert len(frames) < 40
    assert len(frames) > 10


@pytest.mark.parametrize("content", [b"", b"no video at all" * 50])
def test_a_file_that_is_no_video_is_refused(content: bytes, tmp_path: Path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError, match="corrupt"):
        probe(path)
    with pytest.raises(VideoError, match="corrupt"):
        next(decode(path))


def test_frames_of_a_wrong_type_are_refused_and_leave_no_file(tmp_path: Path):
    with pytest.raises(ValueError, match="uint8"):
        write_mp4(tmp_path / "clip.mp4", np.zeros((5, 64, 64, 3)), 24)
    assert not list(tmp_path.iterdir())
