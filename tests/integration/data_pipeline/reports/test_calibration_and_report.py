"""What a user chooses thresholds by: calibration, and the page about a curation."""

import base64
import io
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from magicdistill.data_pipeline.config import Bucket, DataConfig, Decoder, Measures, Policy
from magicdistill.data_pipeline.io.query import Database
from magicdistill.data_pipeline.ledger.calibration import Calibration, format_distributions
from magicdistill.data_pipeline.ledger.ledger import Ledger
from magicdistill.data_pipeline.ledger.takedowns import Takedowns
from magicdistill.data_pipeline.media.video import write_mp4
from magicdistill.data_pipeline.reports.curation_report import write_report
from magicdistill.data_pipeline.reports.thumbnails import thumbnails
from magicdistill.data_pipeline.rows import Video, failed
from magicdistill.data_pipeline.selection.curation_result import Selection, StageTiming
from magicdistill.data_pipeline.selection.curation_state import CurationState
from magicdistill.data_pipeline.sources.folder import Folder
from magicdistill.data_pipeline.sources.listing import iter_videos
from magicdistill.data_pipeline.sources.portrait_world.world import render_clip
from magicdistill.data_pipeline.stages.score import score_video
from tests.curation_tables import GivenVideos, judged_clips

POLICY = Policy(min_short_side=64, min_long_side=64, min_motion_px=0.05, max_motion_px=9.0)


@pytest.fixture(scope="module")
def selection(tmp_path_factory: pytest.TempPathFactory) -> Selection:
    """A folder with a good clip, one that stands still, one that does so and is short, and text."""
    folder = tmp_path_factory.mktemp("clips")
    good = render_clip(100)
    write_mp4(folder / "good.mp4", good, 24)
    write_mp4(folder / "still.mp4", np.repeat(good[:1], 40, axis=0), 24)
    write_mp4(folder / "short.mp4", np.repeat(good[:1], 12, axis=0), 24)
    (folder / "<script>.mp4").write_text("this is no video")
    config = DataConfig(
        sources=(Folder(path=str(folder), license="CC0", mixture="portrait"),),
        measures=Measures(motion_short_side=64, motion_fps=8.0),
        policy=POLICY,
    )
    videos = list(iter_videos(config.sources, folder))
    missing = Video("m", "hdtf/gone", "", "", "fault", "l", "portrait", False, fault="missing file")
    database = Database()
    ledger = Ledger(tmp_path_factory.mktemp("ledger"), database)
    listing = GivenVideos({None: [*videos, missing]})
    state = CurationState(config, database, ledger, listing, Takedowns({}, {}))
    for video in videos:
        if "script" in video.path:
            ledger.append([failed(video, config.measures.version, "corrupt: no video")])
        else:
            ledger.append(score_video(video, Path(video.path), config.measures))
    assert [state.commit_faults(), state.commit_faults()] == [1, 0]
    state.judge(Ledger(database.folder / "temporary", database))
    return state.select()


def test_calibration_says_what_each_threshold_rejects_and_what_it_alone_does(selection: Selection):
    distributions = {d.score: d for d in selection.calibration.distributions()}
    motion, frames = distributions["motion.px"], distributions["frames"]
    assert (motion.num_rejected, motion.num_rejected_alone) == (2, 1)
    assert (frames.num_rejected, frames.num_rejected_alone) == (1, 0)
    assert (frames.count, *frames.quantiles[::3]) == (3, 12, 40, 51)
    assert distributions["short side"].num_rejected == 0
    table = format_distributions(list(distributions.values())).splitlines()
    assert re.fullmatch(r"portrait +frames +3 +12 .* 51 +≥ 17 +1 +0", table[3])


def test_calibration_tells_lengths_of_several_buckets_apart(selection: Selection):
    clips = [decision.clip for decision in selection.decisions]
    wide = [
        replace(clip, clip_id=f"wide {clip.clip_id}", width=96)
        for clip in clips
        if not clip.failure
    ]
    long = Bucket(num_frames=49, width=96)
    buckets = Bucket(), long
    found = judged_clips([*clips, *wide], POLICY, *buckets)
    calibration = Calibration(found.database, found.sql, found.columns, POLICY, buckets)
    distributions = {d.score: d for d in calibration.distributions()}
    assert (distributions["frames"].num_rejected, distributions["frames for 49"].num_rejected) == (
        1,
        2,
    )
    assert distributions["frames for 49"].limit.min == 49


def test_the_faults_of_the_listing_are_counted_by_data_set(selection: Selection):
    assert selection.faults == {"hdtf": Counter({"missing file": 1})}
    assert (selection.num_videos, selection.num_unscored) == (5, 0)
    assert selection.counts == {"accepted": 1, "rejected": 2, "failed": 2}


def test_the_report_is_one_page_that_asks_for_nothing(selection: Selection, tmp_path: Path):
    path = tmp_path / "curation.html"
    facts = {"recipe": "<b>mine</b>"}
    timings = [StageTiming("score", 4, "videos", 2.0)]
    write_report(path, {"training": selection}, tmp_path, facts, timings)
    page = path.read_text()
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert addresses and all(address.startswith("data:image/") for address in addresses)
    assert "<script" not in page and "<b>mine" not in page
    assert "&lt;script&gt;.mp4" in page and "px outside 0.05-9" in page
    pictures = [a.partition(",")[2] for a in addresses if a.startswith("data:image/jpeg")]
    assert len(pictures) == 3
    sizes = {Image.open(io.BytesIO(base64.b64decode(picture))).size for picture in pictures}
    assert sizes == {(64, 64)}
    rows = re.findall(r"<tr><td>([a-z]+: [^<]*)</td><td class=\"n\">(\d+)", page)
    assert dict(rows) == {
        "ingest: videos to read": "4",
        "score: clips found in them": "3",
        "decide: clips that the policy keeps": "1",
    }


def test_pictures_of_clips_are_decoded_once(selection: Selection, tmp_path: Path):
    decoder = Decoder()
    first = thumbnails(selection.clips, tmp_path, decoder)
    (file,) = (tmp_path / "thumbnails").iterdir()
    file.write_bytes(b"kept")
    assert thumbnails(selection.clips, tmp_path, decoder) == [b"kept"] != first
