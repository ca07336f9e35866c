from pathlib import Path

import numpy as np
import pytest

from magicdistill.data_pipeline.media.video import (
    DECODERS,
    PYAV,
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


@pytest.mark.parametrize("decoder", DECODERS)
def test_what_is_written_is_read_again(clip: Path, decoder: str):
    frames = np.stack(list(decode(clip, decoder)))
    error = frames.astype(float) - render_clip(1, num_frames=40)
    assert frames.shape == (40, 64, 64, 3)
    assert np.sqrt((error**2).mean()) < 8  # H.264, chroma at half size


@pytest.mark.parametrize("decoder", DECODERS)
def test_chosen_frames_are_those_of_a_full_pass(clip: Path, decoder: str):
    indices = [3, 4, 4, 17, 39]
    chosen = list(read_frames(clip, indices, decoder))
    full = list(decode(clip, decoder))
    assert all(np.array_equal(a, full[i]) for a, i in zip(chosen, indices, strict=True))


def test_the_header_is_read_without_decoding(clip: Path):
    header = probe(clip)
    assert (header.width, header.height, header.fps) == (64, 64, 24.0)
    assert (header.num_frames, header.codec) == (40, "h264")


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_truncated_file_raises_and_never_pads(clip: Path, decoder: str, tmp_path: Path):
    data = clip.read_bytes()
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(data[: len(data) * 2 // 3])
    frames = []
    with pytest.raises(VideoError, match="corrupt"):
        for frame in decode(broken, decoder):
            frames.append(frame)
    assert len(frames) < 40
    if decoder == PYAV:  # decord may drop what it read ahead
        assert len(frames) > 10


@pytest.mark.parametrize("width", [32, 48, 50, 96, 178])
def test_decord_agrees_with_pyav_or_says_that_it_cannot(width: int, tmp_path: Path):
    frames = np.random.default_rng(0).integers(0, 255, (5, 32, width, 3), dtype=np.uint8)
    write_mp4(tmp_path / "clip.mp4", frames, 24)
    expected = np.stack(list(decode(tmp_path / "clip.mp4", PYAV)))
    try:
        found = np.stack(list(decode(tmp_path / "clip.mp4")))
    except VideoError as error:  # which rows are padded depends on the processor
        assert width % 16 == 0 and f"misreads rows of {width}" in str(error)
    else:
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("content", [b"", b"no video at all" * 50])
def test_a_file_that_is_no_video_is_refused(content: bytes, tmp_path: Path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError, match="corrupt"):
        probe(path)
    for decoder in DECODERS:
        with pytest.raises(VideoError, match="corrupt"):
            next(decode(path, decoder))


def test_frames_of_a_wrong_type_are_refused_and_leave_no_file(tmp_path: Path):
    with pytest.raises(ValueError, match="uint8"):
        write_mp4(tmp_path / "clip.mp4", np.zeros((5, 64, 64, 3)), 24)
    assert not list(tmp_path.iterdir())
