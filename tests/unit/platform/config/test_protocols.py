"""Protocols: what they take, how many videos, which metrics count."""

from pathlib import Path

import pytest

from magicdistill.models.metrics.columns.registry import dimensions
from magicdistill.platform.config.overrides import RecipeError
from magicdistill.platform.config.recipe import PROTOCOLS, load_recipe, recipe_names, with_protocol

ROOT = Path(__file__).parents[4]
LARGE = load_recipe("magic141-4step-8xh100")
TINY = load_recipe("portrait-tiny")


def test_protocols_are_the_papers() -> None:
    assert recipe_names(PROTOCOLS) == ["celebv", "hdtf", "i2v-vbench", "portrait-vbench", "vfhq"]


@pytest.mark.parametrize("name", ["vfhq", "hdtf", "celebv"])
def test_the_papers_clips_are_100_of_129_frames(name: str) -> None:
    found = with_protocol(LARGE, name).evaluation
    assert found is not None
    bucket = found.data.bucket
    assert (found.name, found.num_clips, found.num_samples, found.real) == (
        name, 100, 1, "originals"
    )  # fmt: skip
    assert (bucket.num_frames, bucket.height, bucket.width, bucket.fps) == (129, 544, 960, 24)
    assert found.columns[:2] == ("fid", "fvd") and found.has_clips


def test_vbench_takes_pictures() -> None:
    portraits, official = (
        with_protocol(LARGE, name).evaluation for name in ("portrait-vbench", "i2v-vbench")
    )
    assert portraits is not None and official is not None
    assert portraits.columns == (*dimensions(), "average")
    assert official.columns == (*dimensions()[:-1], "average")
    for found, count in ((portraits, 58), (official, 355)):
        assert (found.num_clips, found.num_samples, found.num_frames) == (count, 5, 129)
        assert found.data.bucket.num_frames == 1 and not found.has_clips


def test_a_protocol_takes_the_model_from_the_recipe() -> None:
    found = with_protocol(LARGE, "vfhq").evaluation
    assert found is not None
    assert found.data.null_text == LARGE.data.null_text
    assert found.data.encoding == LARGE.data.encoding
    tiny = with_protocol(TINY, "vfhq").evaluation
    assert tiny is not None and TINY.evaluation is not None
    assert tiny.data.null_text.num_tokens == 4
    assert tiny.teacher == TINY.evaluation.teacher


def test_a_recipe_with_an_evaluation_is_a_protocol() -> None:
    found = with_protocol(LARGE, "portrait-tiny").evaluation
    assert found is not None and TINY.evaluation is not None
    assert found.data.sources == TINY.evaluation.data.sources
    assert found.name == "portrait-tiny"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fvd_frames: 130", "fvd_frames: 130: the videos have 129; give less"),
        ("columns: [fidd]", "no metric fidd; there are i2v_subject"),
        ("num_frames: 16\ndata: {bucket: {num_frames: 1}}", "give 4k+1 frames"),
        ("num_frames: 17", "give 4k+1 frames where data.bucket.num_frames is 1"),
        ("real: originals\ndata: {flip: true}", "originals needs"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(f"extends: {PROTOCOLS / 'vfhq.yaml'}\n{text}\n")
    with pytest.raises(RecipeError, match=message.replace("?", r"\?").replace("+", r"\+")):
        with_protocol(TINY, str(path))


def test_a_recipe_without_an_evaluation_is_no_protocol() -> None:
    with pytest.raises(RecipeError, match="nightly has no evaluation"):
        with_protocol(TINY, "nightly")
