"""Scorers through Ray Data: each one looks once at what it has to, and at nothing else."""

from pathlib import Path

import numpy as np
import pytest

from magicdistill.data_pipeline.config import DataConfig, Measures, Policy
from magicdistill.data_pipeline.ledger.ledger import Ledger
from magicdistill.data_pipeline.media.video import write_mp4
from magicdistill.data_pipeline.pipeline import select_clips
from magicdistill.data_pipeline.rows import ClipRow
from magicdistill.data_pipeline.scorers.aesthetics import Aesthetics
from magicdistill.data_pipeline.scorers.exposure import Exposure
from magicdistill.data_pipeline.scorers.phash import PHash
from magicdistill.data_pipeline.scorers.registry import AnyScorer
from magicdistill.data_pipeline.sources.folder import Folder
from magicdistill.data_pipeline.sources.listing import iter_videos
from magicdistill.data_pipeline.sources.portrait_world.world import render_clip
from magicdistill.platform.cluster.ray_cluster import ray_cluster
from magicdistill.platform.config.sections import ClusterConfig
from tests.curation_tables import scored


@pytest.fixture(scope="module", autouse=True)
def _cluster():
    with ray_cluster(ClusterConfig(logical_cpus=4, dashboard=False)):
        yield


def make_config(folder: Path, *scorers: AnyScorer, min_motion_px: float = 0.05) -> DataConfig:
    return DataConfig(
        sources=(Folder(path=str(folder), license="CC0", mixture="portrait"),),
        measures=Measures(motion_short_side=64, motion_fps=8.0, scorers=scorers),
        policy=Policy(
            min_short_side=64, min_long_side=64, min_motion_px=min_motion_px, max_motion_px=9.0
        ),
        num_actors=1,
    )


def run(config: DataConfig, root: Path) -> dict[str, ClipRow]:
    """Return every clip by the name of its file, and commit what was missing."""
    select_clips(config, root, lambda stage, done, total: None)
    videos = list(iter_videos(config.sources, root / "clips"))
    measures = config.measures
    found = scored(Ledger(root / "ledger"), videos, measures.version, measures.scorers)
    return {Path(clip.video.uri).name: clip for clips in found.values() for clip in clips}


def test_scorers_measure_only_what_they_have_not_seen(tmp_path: Path):
    folder, root = tmp_path / "clips", tmp_path / "root"
    folder.mkdir()
    good = render_clip(100)
    write_mp4(folder / "good.mp4", good, 24)
    write_mp4(folder / "still.mp4", np.repeat(good[:1], 51, axis=0), 24)
    parts = root / "ledger" / "scores"

    run(make_config(folder), root)
    (scan,) = parts.iterdir()
    scanned = scan.stat().st_mtime_ns

    scorers = (Exposure(), PHash(), Aesthetics())
    first = run(make_config(folder, *scorers), root)
    assert first["good.mp4"].scores["exposure.luma"] is not None
    assert first["good.mp4"].scores["aesthetics.laion"] is None
    assert first["good.mp4"].scorers["aesthetics"] == "absent: no weights for aesthetics"
    assert len(first["good.mp4"].blobs["phash"]) == 128
    assert first["still.mp4"].scores["exposure.luma"] is not None
    assert "phash" not in first["still.mp4"].blobs  # rejected already: costly scorers skip it
    committed = {part: part.stat().st_mtime_ns for part in parts.iterdir()}
    assert len(committed) == 3

    assert run(make_config(folder, *scorers), root) == first
    assert {part: part.stat().st_mtime_ns for part in parts.iterdir()} == committed

    looser = run(make_config(folder, *scorers, min_motion_px=0.0), root)
    assert looser["good.mp4"] == first["good.mp4"]
    assert len(looser["still.mp4"].blobs["phash"]) == 128
    (added,) = set(parts.iterdir()) - committed.keys()
    assert scan.stat().st_mtime_ns == scanned
    assert added != scan
