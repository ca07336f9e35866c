"""Videos from elsewhere: how they are named, demanded, and brought to the shape of a table."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from magicdistill.data_pipeline.config import Bucket
from magicdistill.data_pipeline.media.video import write_mp4
from magicdistill.platform.config.recipe import load_recipe
from magicdistill.platform.config.validation import RecipeError
from magicdistill.platform.evaluation.contestants import (
    FAMILIES,
    MODEL_INDEX,
    StockPipeline,
    Video,
    VideoFolder,
    fitted,
    names_of,
)
from magicdistill.platform.evaluation.line_up import line_up
from tests.scored_clips import scored_clip

ROOT = Path(__file__).parents[4]
STUDENT = "assets/portrait-tiny/student-4step"
SHAPE = Bucket(num_frames=9, height=32, width=32, fps=8)


def numbered(count: int, height: int = 32, width: int = 32) -> list[np.ndarray]:
    """Frames whose level is ten times their number."""
    return [np.full((height, width, 3), 10 * at, np.uint8) for at in range(count)]


@pytest.mark.parametrize(
    ("count", "fps", "shown", "change"),
    [
        (9, 8, range(9), ""),
        (12, 8, range(9), "from 12 frames of 32x32 at 8 fps"),
        (17, 16, range(0, 17, 2), "from 17 frames of 32x32 at 16 fps"),
        (
            5, 8, [0, 1, 1, 2, 2, 3, 3, 4, 4],
            "from 5 frames of 32x32 at 8 fps, played 2.00 times slower",
        ),
        (1, 8, [0] * 9, "from 1 frames of 32x32 at 8 fps"),
    ],
)  # fmt: skip
def test_frames_are_those_at_the_tables_times_and_what_is_changed_is_said(
    count, fps, shown, change
):
    frames, said = fitted(Video(numbered(count), fps), SHAPE)
    assert frames.shape == (9, 32, 32, 3)
    assert frames[:, 0, 0, 0].tolist() == [10 * at for at in shown]
    assert said == change


def test_another_aspect_is_cropped_about_its_centre():
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, 16:48] = 200
    frames, said = fitted(Video([wide] * 9, 8), SHAPE)
    assert (frames == 200).all() and said == "from 9 frames of 32x64 at 8 fps"


def test_videos_are_named_as_vbench_names_them_and_each_has_its_own_name():
    clips = [scored_clip(name) for name in ("a", "b", "c")]
    entries = ("a person / talks", "a person / talks", "")
    clips = [
        replace(clip, video=replace(clip.video, entry=entry))
        for clip, entry in zip(clips, entries, strict=True)
    ]
    names = names_of(clips, 2)
    assert names[0] == ["a person _ talks-0", "a person _ talks-1"]
    assert names[2][0] == f"{clips[2].clip_id}-0"
    assert len({name for own in names for name in own}) == 6


def test_a_folder_without_a_video_or_with_a_broken_one_is_told_before_anything_runs(tmp_path: Path):
    folder = VideoFolder("rival", tmp_path / "rival")
    with pytest.raises(RecipeError, match="--videos rival: there is no folder"):
        folder.demand(())
    folder.folder.mkdir()
    write_mp4(folder.folder / "a-0.mp4", np.stack(numbered(9)), 8)
    folder.demand(["a-0"])
    with pytest.raises(RecipeError, match=r"1 of 2 videos are not in .*rival, .* b-0\.mp4"):
        folder.demand(["a-0", "b-0"])
    (folder.folder / "b-0.mp4").write_bytes(b"no video")
    with pytest.raises(RecipeError, match=r"--videos rival: b-0\.mp4: "):
        folder.demand(["a-0", "b-0"])


def test_a_folder_that_is_no_known_pipeline_is_told_with_the_known_ones(tmp_path: Path):
    pipeline = StockPipeline("rival", tmp_path)
    with pytest.raises(RecipeError, match=r"--pipeline rival: .* has no model_index\.json"):
        pipeline.demand(())
    (tmp_path / MODEL_INDEX).write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(RecipeError, match=r"is a FluxPipeline, which is none of Wan.*I2VGenXL"):
        StockPipeline("rival", tmp_path).demand(())


def test_every_known_class_is_in_diffusers():
    import diffusers

    assert all(hasattr(diffusers, name) for name in FAMILIES)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"videos": ["place"]}, r"--videos place: give NAME=DIR$"),
        ({"videos": ["a=b,steps=3"]}, r"--videos a=b,steps=3: give NAME=DIR$"),
        ({"pipelines": ["a=b,steps=x"]}, r"give NAME=DIR\[,steps=NUMBER\]\[,guidance=NUMBER\]"),
        ({"pipelines": ["a/b=c"]}, "--pipeline a/b=c: give NAME=DIR"),
        ({"models": [f"a={ROOT / STUDENT},steps=0"]}, "steps=0: .*greater than or equal to 1"),
        ({"videos": ["real=b"]}, "the name real is given twice"),
        ({"videos": ["a=b", "a=c"]}, "the name a is given twice"),
    ],
)
def test_a_contestant_that_is_written_wrongly_is_told_how(flags, message):
    given = {"models": [], "pipelines": [], "videos": []} | flags
    with pytest.raises(RecipeError, match=message):
        line_up(load_recipe("portrait-tiny-smoke"), **given)


def test_models_with_names_are_sampled_as_they_ask(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    recipe = load_recipe("portrait-tiny-smoke")
    own = recipe.method.trained_sampler
    assert own is not None
    four, eight = f"four={STUDENT}", f"eight={STUDENT},steps=8,shift=3"
    ways, folder = line_up(recipe, [four, eight], [], ["rival=videos"])
    assert [way.name for way in ways] == ["four", "eight", "rival"]
    assert [str(way).partition(", ")[2] for way in ways[:2]] == [
        str(own),
        f"{own.name} in 8 steps, shift 3",
    ]
    assert folder.name == recipe.name
    beside_its_teacher, _ = line_up(recipe, [STUDENT], [], [])
    assert [way.name for way in beside_its_teacher] == ["teacher", "euler", "student"]
