"""Curation of clips in a bucket into latents in a bucket, stage by stage and again."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
import torch

from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.latents.cache import LatentCache
from magicdistill.data_pipeline.maintenance.verification import verify
from magicdistill.data_pipeline.media.video import write_mp4
from magicdistill.data_pipeline.pipeline import Curator
from magicdistill.data_pipeline.sources.portrait_world.world import render_clip
from magicdistill.models.locations import find_weights
from magicdistill.platform.cluster.ray_cluster import ray_cluster
from magicdistill.platform.config.recipe import Recipe, load_recipe
from magicdistill.platform.config.sections import ClusterConfig
from magicdistill.platform.data.prepare import data_configs, data_root

if TYPE_CHECKING:
    from tests.s3_server import Server

RECIPE = """
extends: portrait-tiny
data_root: s3://bucket/prefix/data
data:
  sources: [{kind: folder, path: s3://bucket/clips/train, license: CC0, mixture: portrait}]
  windows_per_clip: 1
  num_actors: 1
  measures: {motion_short_side: 64, motion_fps: 8, scorers: [{kind: exposure}]}
evaluation:
  data:
    sources: [{kind: folder, path: s3://bucket/clips/test, license: CC0, mixture: portrait}]
    num_actors: 1
    measures: {motion_short_side: 64, motion_fps: 8, scorers: [{kind: exposure}]}
"""


@pytest.fixture
def recipe(s3: "Server", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recipe]:
    """A recipe on a bucket with four clips, and a cluster that knows where the bucket is."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    good, other = render_clip(0), render_clip(1)
    names = {"train/a": good, "train/b": other, "train/short": good[:10], "test/b": other}
    for name, frames in names.items():
        write_mp4(tmp_path / "clip.mp4", frames, 24)
        boto3.client("s3").upload_file(f"{tmp_path}/clip.mp4", "bucket", f"clips/{name}.mp4")
    (tmp_path / "mine.yaml").write_text(RECIPE)
    with ray_cluster(ClusterConfig(logical_cpus=4, dashboard=False)):
        yield load_recipe(tmp_path / "mine.yaml")


def curator(recipe: Recipe, **options: Any) -> Curator:
    root = data_root(recipe, Path("unused"))
    return Curator(list(data_configs(recipe).values()), root, lambda *_: None, **options)


def objects() -> dict[str, tuple[Any, str]]:
    """Return when each object but decisions was written, and what it is."""
    found = boto3.client("s3").list_objects_v2(Bucket="bucket", Prefix="prefix/")["Contents"]
    return {
        entry["Key"]: (entry["LastModified"], entry["ETag"])
        for entry in found
        if "/decisions/" not in entry["Key"]
    }


def refuse() -> None:
    raise AssertionError("there was nothing to do")


@pytest.mark.long
def test_a_bucket_is_curated_stage_by_stage_and_a_second_run_does_nothing(recipe: Recipe):
    assert recipe.model.vae
    vae = find_weights(recipe.model.vae, "model.vae")
    scoring = curator(recipe)
    scoring.ingest()
    scoring.score()
    assert [done.count for done in scoring.timings] == [4]

    training, held_out = curator(recipe, before_work=refuse).decide()
    reasons = {Path(d.clip.video.uri).name: d.reasons for d in training.decisions}
    assert reasons.keys() == {"a.mp4", "b.mp4", "short.mp4"}
    assert reasons["a.mp4"] == ()
    assert reasons["b.mp4"] == (
        "duplicate: of folder/test/b.mp4 in the held-out clips by the same file",
    )
    assert reasons["short.mp4"][0].startswith("frames: 10 at 24 fps")
    assert held_out.counts == {"accepted": 1, "rejected": 0, "failed": 0}

    results = curator(recipe).encode(vae)
    assert [result.num_rows for result in results] == [2, 1]
    for result in results:
        check(result.cache_path)
    assert not list(verify(data_root(recipe, Path("unused")), lambda *_: None))

    written = objects()
    assert any("/latents/" in key for key in written)
    again = curator(recipe, before_work=refuse)
    again.ingest()
    again.score()
    assert [result.version for result in again.encode(vae)] == [r.version for r in results]
    assert not again.timings
    assert objects() == written


def check(path: AnyPath) -> None:
    """Read all rows of a cache in the bucket."""
    cache = LatentCache(path)
    latents = torch.stack([cache.read(row).latents.float() for row in range(len(cache))])
    assert str(path).startswith("s3://bucket/prefix/data/latents/versions/")
    assert latents.isfinite().all() and latents.std() > 0
