"""Scorers through Ray Data: each one looks once at what it has to, and at nothing else."""

import json
from pathlib import Path

import numpy as np
import pytest

from magicdistill.data_pipeline.captioning.base import WriterError
from magicdistill.data_pipeline.captioning.captions import Captions
from magicdistill.data_pipeline.captioning.endpoint import Endpoint
from magicdistill.data_pipeline.config import DataConfig, Measures, Policy
from magicdistill.data_pipeline.ledger.ledger import Ledger
from magicdistill.data_pipeline.media.video import write_mp4
from magicdistill.data_pipeline.pipeline import Curator, select_clips
from magicdistill.data_pipeline.reports.curation_report import write_report
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
from tests.chat_server import TEXT, answer, chat_server, completion, error
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


def test_captions_are_written_in_actors_and_a_stage_that_was_stopped_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("VLM_KEY", "sk-of-the-driver")  # after the workers' environment was made
    folder, root = tmp_path / "clips", tmp_path / "root"
    folder.mkdir()
    for seed in range(3):
        write_mp4(folder / f"{seed}.mp4", render_clip(100 + seed), 24)
    seen: list[tuple[str, int, int]] = []
    with chat_server() as server:
        writer = Endpoint(url=server.url, model="tiny-vlm", key_variable="VLM_KEY")
        captions = Captions(writer=writer, price_in=10.0)
        changes = {"captions": captions, "videos_per_block": 1}
        config = make_config(folder).model_copy(update=changes)

        def curator() -> Curator:
            return Curator([config], root, lambda *event: seen.append(event))

        first = curator()
        first.ingest()
        first.score()
        server.faults[:] = [answer(completion(TEXT)), error(401, "the key has expired")]
        with pytest.raises(WriterError, match="the key has expired"):
            first.caption()
        num_asked = len(server.bodies)
        assert 2 <= num_asked <= 3  # a block may be in work already
        second = curator()
        second.caption()
        assert set(server.keys) == {"Bearer sk-of-the-driver"}
        ((this_run, all_runs),) = filter(None, second.caption_costs())
        assert (all_runs.captions, all_runs.tokens_in) == (3, 300)
        assert this_run.captions in (2, 3)  # the refusal may overtake the first block
        assert this_run.money(captions) == pytest.approx(0.001 * this_run.captions)
        clips = second.decide()[0].clips
        assert [clip.video.caption for clip in clips] == [TEXT] * 3
        assert seen[-1] == ("caption", this_run.captions, this_run.captions)
        last = curator()
        last.caption()
        assert last.timings == []
    path = tmp_path / "report.html"
    costs = {"training": last.caption_costs()[0]}
    selections = {"training": last.decide()[0]}
    write_report(path, selections, root, {"recipe": "mine"}, last.timings, costs)
    page = path.read_text()
    assert "written by tiny-vlm" in page and TEXT in page and "0.003" in page
    spelled = (root / "ledger" / "scorers").glob("caption-*.json")
    (described,) = [json.loads(file.read_text()) for file in spelled]
    assert (described["model"], described["prompt"]) == ("tiny-vlm", captions.prompt)
    stored = b"".join(file.read_bytes() for file in root.rglob("*") if file.is_file())
    assert b"sk-of-the-driver" not in stored
