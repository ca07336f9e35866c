"""A source of one's own: registered, named in a recipe's data, listed with the others."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from pydantic import ValidationError

from magicdistill.data_pipeline.config import DataConfig
from magicdistill.data_pipeline.media.video import write_mp4
from magicdistill.data_pipeline.rows import Video, digest
from magicdistill.data_pipeline.sources.base import SourceConfig, UniformClips
from magicdistill.data_pipeline.sources.fetching import Scratch, is_rendered
from magicdistill.data_pipeline.sources.listing import iter_videos
from magicdistill.data_pipeline.sources.portrait_world.world import render_clip
from magicdistill.data_pipeline.sources.registry import SOURCES
from tests.registries import registries_restored


class Mirrored(SourceConfig):
    """The procedural world, mirrored: rendered when it is needed."""

    kind: Literal["mirrored"] = "mirrored"
    num_clips: int = 1
    SCHEME: ClassVar = "mirrored"
    SCORES: ClassVar = ("mirrored",)

    def videos(self, clips_directory: Path) -> Iterator[Video]:
        for seed in range(self.num_clips):
            uri, path = f"mirrored:{seed}", clips_directory / f"mirrored-{seed}.mp4"
            yield Video(digest(uri), uri, uri, str(path), "1", self.terms(), "portrait", False)

    @classmethod
    def render(cls, uri: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_mp4(path, render_clip(int(uri.partition(":")[2]), 5)[:, :, ::-1].copy(), 24)

    def terms(self) -> str:
        return "CC0"

    def uniform_clips(self) -> UniformClips:
        return UniformClips("The mirrored world's", 64, 64, 5 / 24, "choose a shorter bucket")


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with registries_restored():
        SOURCES.register(Mirrored)
        yield


def data(**bucket: int) -> DataConfig:
    sources = [{"kind": "mirrored", "num_clips": 2}, {"kind": "portrait-world", "num_clips": 1}]
    return DataConfig.model_validate({"sources": sources, "bucket": bucket})


def test_it_lists_its_videos_beside_other_sources(tmp_path: Path) -> None:
    listed = [video.source_id for video in iter_videos(data(num_frames=5).sources, tmp_path)]
    assert listed == ["mirrored:0", "mirrored:1", "portrait-world/000000"]


def test_its_clips_are_rendered_when_they_are_needed(tmp_path: Path) -> None:
    video, *_ = iter_videos(data(num_frames=5).sources, tmp_path)
    assert is_rendered(video.uri) and not Path(video.path).exists()
    with Scratch() as scratch:
        assert scratch.fetch(video.uri, video.path).stat().st_size > 0


def test_it_says_which_buckets_it_cannot_fill() -> None:
    with pytest.raises(ValidationError, match=r"world's clips last 0\.2.* shorter bucket"):
        data(num_frames=17)


def test_limits_may_name_the_scores_that_it_imports() -> None:
    limits = {"all": {"mirrored.quality": {"min": 0.5}}}
    values = data(num_frames=5).model_dump() | {"policy": {"limits": limits}}
    assert DataConfig.model_validate(values).policy.limits["all"]["mirrored.quality"].min == 0.5
    with pytest.raises(ValidationError, match=r"'unknown\.quality' is of none of"):
        text = {"limits": {"all": {"unknown.quality": {"min": 0.5}}}}
        DataConfig.model_validate(values | {"policy": text})
