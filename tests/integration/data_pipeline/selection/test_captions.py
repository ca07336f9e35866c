"""Captions on their way: which clips lack one, what becomes of it, and what resumes."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from magicdistill.data_pipeline.captioning.base import WriterError
from magicdistill.data_pipeline.captioning.captions import Captions
from magicdistill.data_pipeline.captioning.costs import CaptionCost
from magicdistill.data_pipeline.captioning.endpoint import Endpoint
from magicdistill.data_pipeline.config import Bucket, DataConfig, Limit, Measures, Policy
from magicdistill.data_pipeline.io.query import Database
from magicdistill.data_pipeline.ledger.captions import cost_of_all
from magicdistill.data_pipeline.ledger.ledger import Ledger
from magicdistill.data_pipeline.media.sandbox import Sandbox
from magicdistill.data_pipeline.media.video import write_mp4
from magicdistill.data_pipeline.rows import ClipRow, Video, split_temporary
from magicdistill.data_pipeline.scorers.letterbox import Letterbox
from magicdistill.data_pipeline.selection.curation_state import CurationState
from magicdistill.data_pipeline.sources.folder import Folder
from magicdistill.data_pipeline.stages.caption import BOX, Caption, CaptionJob, Patience
from tests.chat_server import TEXT, ChatServer, answer, chat_server, completion, error
from tests.curation_tables import NOTHING, GivenVideos
from tests.scored_clips import scored_clip

NUM_CLIPS = 4
LETTERBOX = Letterbox()
MEASURES = Measures(scorers=(LETTERBOX,))
LOOPS = "the man walks the man walks the man walks the man walks"
CHINESE = "一位短发女子对着镜头说话背景明亮。"


@pytest.fixture(scope="module")
def _server() -> Iterator[ChatServer]:
    with chat_server() as server:
        yield server


@pytest.fixture
def server(_server: ChatServer) -> ChatServer:
    for known in (_server.faults, _server.paths, _server.keys, _server.bodies):
        known.clear()
    _server.text = TEXT
    return _server


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(60.0) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a film with black bars of 16 of 64 rows at top and bottom."""
    frames = np.full((48, 64, 96, 3), 128, np.uint8)
    frames[:, :16] = frames[:, 48:] = 0
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_mp4(path, frames, 24)
    return path


def config_of(server: ChatServer, **changes: Any) -> DataConfig:
    writer = Endpoint(
        url=server.url, model="tiny-vlm", num_attempts=2, pause_s=0.01, num_parallel=1
    )
    sources = (Folder(path="/nowhere", license="CC0", mixture="portrait"),)
    return DataConfig(
        sources=sources,
        bucket=Bucket(num_frames=17, height=32, width=64),
        measures=MEASURES,
        policy=Policy(min_short_side=16, min_long_side=16, crop_bars=True, max_clips_per_source=2),
        captions=Captions(writer=writer, **changes),
    )


class Curation:
    """The stage of captions without Ray: one process that takes the same steps."""

    def __init__(
        self, root: Path, film: Path, sandbox: Sandbox, captions: Sequence[str] = ()
    ) -> None:
        self.sandbox = sandbox
        self.ledger = Ledger(root / "ledger", Database())
        self.temporary = Ledger(root / "temporary", self.ledger.database)
        texts = [*captions] or [""] * NUM_CLIPS
        self.videos = [
            Video(f"v{n}", f"set/{n}", str(film), str(film), "1-1", "l", "portrait", caption=text)
            for n, text in enumerate(texts)
        ]
        self.ledger.append([self._clip(video) for video in self.videos])

    @staticmethod
    def _clip(video: Video) -> ClipRow:
        bars = {"share": 0.5, "left": 0.0, "top": 0.25, "right": 0.0, "bottom": 0.25}
        scores = dict.fromkeys(LETTERBOX.SCORES, 0.0) | bars
        row = scored_clip(
            f"c-{video.video_id}",
            measures=MEASURES.version,
            scores={f"letterbox.{name}": value for name, value in scores.items()},
            scorers={"letterbox": LETTERBOX.version},
        )
        return replace(row, video=video)

    def state(self, config: DataConfig) -> CurationState:
        lister = GivenVideos({None: self.videos})
        state = CurationState(config, self.ledger.database, self.ledger, lister, NOTHING)
        state.judge(self.temporary)
        return state

    def caption(self, config: DataConfig, most: int = NUM_CLIPS) -> int:
        """Write at most so many captions, as a run that is killed then; return their number."""
        clips = self.state(config).uncaptioned()
        if clips is None:
            return 0
        rows = pa.concat_tables(clips.tables(also=[BOX])).slice(0, most)
        job = CaptionJob.prepare(config)
        stage = Caption(job)
        stage._sandbox = self.sandbox  # one process for all tests, instead of one for each call
        found = stage(rows)
        passing, lasting = split_temporary(found)
        self.temporary.commit(passing)
        self.ledger.commit(lasting)
        Patience(job).watch(found["failure"].to_pylist())
        return len(found)

    def decisions(self, config: DataConfig) -> list[tuple[str, str, tuple[str, ...]]]:
        """Return caption, status and reasons of all clips in the order of the listing."""
        found = self.state(config).clips.decisions()
        return [(d.clip.video.caption, d.status, d.reasons) for d in found]


def test_missing_captions_are_written_once_and_a_killed_run_goes_on(
    server: ChatServer, film: Path, sandbox: Sandbox, tmp_path: Path
):
    curation, config = Curation(tmp_path, film, sandbox), config_of(server)
    assert curation.decisions(config) == [("", "rejected", ("not captioned yet",))] * NUM_CLIPS
    assert curation.caption(config, most=3) == 3
    assert [status for _, status, _ in curation.decisions(config)].count("accepted") == 3
    assert curation.caption(config) == 1
    assert curation.caption(config) == 0
    assert curation.decisions(config) == [(TEXT, "accepted", ())] * NUM_CLIPS
    assert len(server.bodies) == NUM_CLIPS
    again = config_of(server, prompt="Other words.")
    assert curation.caption(again) == NUM_CLIPS
    assert curation.caption(config) == 0  # the first captions are still there
    table = pa.concat_tables(curation.state(config).clips.tables())
    assert set(table["caption"].to_pylist()) == {TEXT}


def test_the_writer_sees_what_is_encoded_and_the_row_keeps_its_crop(
    server: ChatServer, film: Path, sandbox: Sandbox, tmp_path: Path
):
    curation, config = (
        Curation(tmp_path, film, sandbox),
        config_of(server, num_frames=3, long_side=48),
    )
    clips = curation.state(config).uncaptioned()
    assert clips is not None
    (row,) = [*clips.tables(also=[BOX])]
    assert row[BOX].to_pylist() == [[0, 16, 96, 48]] * NUM_CLIPS
    curation.caption(config)
    *pictures, _ = server.bodies[0]["messages"][0]["content"]
    assert len(pictures) == 3
    for found in curation.ledger.find([f"c-v{n}" for n in range(NUM_CLIPS)]):
        assert (found.width, found.height, found.crop) == (96, 64, ())
    accepted = [d.clip for d in curation.state(config).clips.decisions()]
    assert {clip.crop for clip in accepted} == {(0, 16, 96, 48)}


def test_a_manifests_caption_is_kept_or_replaced_as_the_recipe_says(
    server: ChatServer, film: Path, sandbox: Sandbox, tmp_path: Path
):
    own = "A bearded man reads aloud from a book by a window."
    curation = Curation(tmp_path, film, sandbox, [own, "Too short.", CHINESE, ""])
    keep, replacing = config_of(server), config_of(server, existing="replace")
    assert curation.caption(keep) == 1
    kept = curation.decisions(keep)
    assert kept[0] == (own, "accepted", ())
    assert kept[1] == ("Too short.", "rejected", ("caption.words: 2 < 5",))
    assert kept[2] == (CHINESE, "rejected", ("caption.latin: 0 < 0.9",))
    assert kept[3] == (TEXT, "accepted", ())
    assert curation.caption(replacing) == 3
    assert curation.decisions(replacing) == [(TEXT, "accepted", ())] * 4
    assert curation.decisions(keep) == kept  # what was written over it does not count


CHECKED = [
    (completion("A man."), "caption.words: 2 < 5"),
    (completion("word " * 301), "caption.words: 301 > 300"),
    (completion(LOOPS), "caption.repetition: 0.7 > 0.2"),
    (completion(CHINESE), "caption.latin: 0 < 0.9"),
    (completion("1 2 3 4 5 6"), "caption.latin: could not be measured"),
    (completion(TEXT, "length"), "caption.cut: 1 > 0"),
]


def test_a_caption_that_fails_the_check_is_rejected_with_its_reason(
    server: ChatServer, film: Path, sandbox: Sandbox, tmp_path: Path
):
    curation = Curation(tmp_path, film, sandbox, [""] * len(CHECKED))
    config = config_of(server)
    server.faults[:] = [answer(text) for text, _ in CHECKED]
    curation.caption(config, most=len(CHECKED))
    for (_, status, reasons), (_, reason) in zip(curation.decisions(config), CHECKED, strict=True):
        assert status == "rejected" and reason in reasons
    limits = ("caption.words", "caption.repetition", "caption.latin", "caption.cut")
    looser = config.policy.model_copy(update={"limits": {"all": dict.fromkeys(limits, Limit())}})
    lenient = config.model_copy(update={"policy": looser})
    assert {status for _, status, _ in curation.decisions(lenient)} == {"accepted"}
    assert curation.caption(config) == 0  # another policy writes nothing again


def test_a_clip_without_an_answer_stays_with_its_reason_and_passing_ones_are_asked_again(
    server: ChatServer, film: Path, sandbox: Sandbox, tmp_path: Path
):
    curation, config = Curation(tmp_path, film, sandbox), config_of(server)
    server.faults[:] = [error(400, "too large")]
    curation.caption(config, most=1)
    server.faults[:] = [error(500, "out of memory")] * 2
    curation.caption(config, most=1)
    found = curation.decisions(config)
    assert found[0][1:] == ("failed", ("caption: HTTP 400 Bad Request: too large",))
    assert found[1][1] == "failed"
    assert "HTTP 500 Internal Server Error: out of memory (2 attempts)" in found[1][2][0]
    curation.temporary = Ledger(tmp_path / "next run", curation.ledger.database)
    assert curation.caption(config) == 3
    assert [status for _, status, _ in curation.decisions(config)] == ["failed"] + ["accepted"] * 3
    other = config_of(server, prompt="Other words.")
    assert curation.caption(other) == 4  # the failure was of the first captions


def test_copies_and_clips_beyond_a_films_cap_get_no_caption(
    server: ChatServer, film: Path, sandbox: Sandbox, tmp_path: Path
):
    curation = Curation(tmp_path, film, sandbox)
    curation.videos = [replace(video, source_id="set/0") for video in curation.videos]
    curation.ledger = Ledger(tmp_path / "another", curation.ledger.database)
    curation.ledger.append([curation._clip(video) for video in curation.videos])
    config = config_of(server)
    assert curation.caption(config) == 2
    assert curation.caption(config) == 0
    reasons = [reasons for _, _, reasons in curation.decisions(config)]
    assert reasons.count(("cap: set/0 has more than 2 clips",)) == 2
    assert len(server.bodies) == 2


def test_the_ledger_knows_what_all_runs_cost(
    server: ChatServer, film: Path, sandbox: Sandbox, tmp_path: Path
):
    curation = Curation(tmp_path, film, sandbox)
    config = config_of(server, price_in=1.5, price_out=6.0)
    captions, free = config.captions, config_of(server).captions
    assert captions is not None and free is not None
    (version,) = {scorer.version for scorer in config.scorers if scorer.kind == "caption"}
    assert cost_of_all(curation.ledger, version) == CaptionCost()
    server.faults[:] = [error(400, "too large"), error(503)]
    curation.caption(config, most=2)
    curation.caption(config)
    curation.ledger.append(curation.ledger.find(["c-v3"]))  # a merge that was interrupted
    cost = cost_of_all(curation.ledger, version)
    assert (cost.captions, cost.requests) == (4, 5)
    assert (cost.tokens_in, cost.tokens_out) == (300, 60)
    assert cost.money(captions) == pytest.approx((300 * 1.5 + 60 * 6.0) / 1e6)
    assert "0.00081 by the recipe's prices" in cost.describe(captions)
    assert cost.money(free) is None
    assert cost_of_all(curation.ledger, "another") == CaptionCost()


def test_a_writer_that_refuses_or_is_silent_ends_the_stage(
    server: ChatServer, film: Path, sandbox: Sandbox, tmp_path: Path
):
    curation, config = Curation(tmp_path, film, sandbox), config_of(server)
    server.faults[:] = [error(404, "no such model")]
    with pytest.raises(WriterError, match=r"tiny-vlm: .*404 Not Found: no such model.*same c"):
        curation.caption(config)
    patience = Patience(CaptionJob.prepare(config))
    patience.watch(["caption: unreachable: x"] * 31 + [""] + ["caption: unreachable: x"] * 31)
    with pytest.raises(WriterError, match="32 clips in a row"):
        patience.watch(["caption: unreachable: x"])


def test_written_captions_are_what_is_embedded(
    server: ChatServer, film: Path, sandbox: Sandbox, tmp_path: Path
):
    curation, config = Curation(tmp_path, film, sandbox), config_of(server)
    curation.caption(config)
    clips = curation.state(config).clips
    clips.write_distinct("caption", "status = 'accepted'", tmp_path / "captions.parquet")
    stored = clips.database.files([tmp_path / "captions.parquet"])
    assert clips.database.rows(f"FROM {stored}") == [(TEXT,)]
