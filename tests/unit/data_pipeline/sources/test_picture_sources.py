"""Pictures as clips of one frame, and VBench's list of pictures and prompts."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from magicdistill.data_pipeline.config import Bucket, Measures
from magicdistill.data_pipeline.latents.windows import decode_windows
from magicdistill.data_pipeline.media.video import VideoError
from magicdistill.data_pipeline.sources.data_sets.vbench_i2v import VbenchI2v, pairs
from magicdistill.data_pipeline.sources.folder import Folder
from magicdistill.data_pipeline.sources.listing import iter_videos
from magicdistill.data_pipeline.sources.registry import Source
from magicdistill.data_pipeline.stages.score import score_video

SUBJECT = ["i2v_subject", "dynamic_degree", "temporal_flickering"]
ROWS = [
    {"prompt_en": "a man talks, 50%", "image_name": "a man talks.jpg", "dimension": SUBJECT},
    {"prompt_en": "a man talks, camera pans left", "image_name": "a man talks.jpg",
     "dimension": ["camera_motion"]},
    {"prompt_en": "a beach", "image_name": "a beach.jpg",
     "dimension": ["i2v_background", "temporal_flickering"]},
    {"prompt_en": "no picture named"},
]  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> VbenchI2v:
    path = tmp_path / "vbench2_i2v_full_info.json"
    path.write_text(json.dumps(ROWS))
    (tmp_path / "16-9").mkdir()
    return VbenchI2v(manifest=str(path), images=str(tmp_path / "16-9"))


def save(path: Path) -> np.ndarray:
    ramp = np.linspace(0, 255, 96 * 128 * 3).reshape(96, 128, 3).astype(np.uint8)
    Image.fromarray(ramp).save(path)
    return ramp


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_picture_is_a_clip_of_one_frame(tmp_path: Path, suffix: str):
    ramp = save(tmp_path / f"a face, 100%.{suffix}")
    listed: list[Source] = [Folder(path=str(tmp_path), license="l", mixture="portrait")]
    (video,) = iter_videos(listed, tmp_path)
    path = Path(video.path)
    (clip,) = score_video(video, path, Measures())
    assert (clip.start, clip.stop, clip.width, clip.height) == (0, 1, 128, 96)
    assert (clip.num_frames_decoded, clip.motion_px, clip.decoder) == (1, None, "pillow")
    window = decode_windows(clip, path, Bucket(num_frames=1, height=96, width=128), 1)
    assert window.shape == (1, 1, 96, 128, 3)
    assert np.abs(window[0, 0].astype(int) - ramp).mean() < 3


def test_a_damaged_picture_is_no_clip(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8 no picture")
    (video,) = iter_videos([Folder(path=str(tmp_path), license="l", mixture="portrait")], tmp_path)
    with pytest.raises(VideoError):
        score_video(video, Path(video.path), Measures())


def test_vbench_lists_the_pairs_that_count(source: VbenchI2v):
    save(Path(source.images) / "a man talks.jpg")
    man, beach, faulty = iter_videos([source], Path("unused"))
    assert (man.caption, man.entry, man.fault) == ("a man talks, 50%", "a man talks, 50%", "")
    assert man.source_id == "vbench-i2v/a man talks.jpg"
    assert Path(man.path).is_file()
    assert (beach.caption, beach.fault) == ("a beach", "missing file")
    assert faulty.fault.startswith("bad row: KeyError")
    counting = {pair.prompt: pair.dimensions for pair in pairs(source)}
    assert counting["a man talks, 50%"] == set(SUBJECT)
    assert "i2v_subject" not in counting["a beach"]


def test_all_pairs_can_be_listed(source: VbenchI2v):
    every = source.model_copy(update={"left_out": ()})
    assert len(list(iter_videos([every], Path("unused")))) == len(ROWS)


def test_a_list_that_is_missing_says_where_it_comes_from(source: VbenchI2v):
    Path(source.manifest).unlink()
    origin = r"github.com/Vchitect/VBench.*download_data.sh"
    with pytest.raises(FileNotFoundError, match=rf"manifest .*{origin}"):
        list(pairs(source))
    Path(source.images).rmdir()
    with pytest.raises(FileNotFoundError, match=rf"folder .*16-9 does not exist: .*{origin}"):
        list(iter_videos([source], Path("unused")))


def test_a_list_of_another_kind_is_refused(source: VbenchI2v):
    Path(source.manifest).write_text('{"clips": {}}')
    with pytest.raises(ValueError, match="no list of pairs"):
        list(pairs(source))
