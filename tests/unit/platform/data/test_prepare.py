"""What a job says of the clips that were not kept."""

from dataclasses import replace

import pytest

from magicdistill.data_pipeline.config import DataConfig, Policy
from magicdistill.data_pipeline.rows import ClipRow, Video
from magicdistill.data_pipeline.selection.curation_result import Selection
from magicdistill.platform.config.recipe import load_recipe
from magicdistill.platform.data.prepare import MAX_LOST, demand_captions, name_of, tell
from magicdistill.platform.runs.logs import ExplainedError
from tests.curation_tables import judged_clips
from tests.scored_clips import scored_clip

FILM = Video("f", "folder/films/long.mp4", "", "", "", "CC0", "general", True)
CLIPS = [
    scored_clip(
        f"c{n}",
        source_id=FILM.source_id,
        mixture="general",
        start=48 * n,
        stop=48 * n + 40,
        scores={"frozen.longest_s": 2.0},
    )
    for n in range(12)
]


def selection(clips: list[ClipRow]) -> Selection:
    source = {"kind": "folder", "path": "films", "license": "CC0", "mixture": "general"}
    config = DataConfig.model_validate({"sources": [source]})
    judged = judged_clips(clips, Policy(min_short_side=1, min_long_side=1), config.bucket)
    return Selection(config, judged, 1, 0, {})


def test_clips_of_one_film_are_told_apart_and_those_left_out_are_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tell("training", selection(CLIPS))
    named = [line for line in capsys.readouterr().out.splitlines() if "rejected folder" in line]
    assert len(set(named)) == len(named) == MAX_LOST
    assert "long.mp4 from 2.00 to 3.67 s: frozen" in named[1]


@pytest.mark.parametrize(("count", "end"), [(MAX_LOST, None), (12, "and 4 more")])
def test_the_rest_is_counted_where_there_is_one(
    count: int, end: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    tell("training", selection(CLIPS[:count]))
    last = capsys.readouterr().out.splitlines()[-1]
    assert (end is not None) == ("more" in last) and (end or "rejected") in last


def test_what_has_no_span_goes_by_its_entry_in_the_manifest() -> None:
    video = replace(FILM, entry="clip-17")
    assert name_of(ClipRow("c", video, "m")) == "folder/films/long.mp4 clip-17"
    assert name_of(ClipRow("c", FILM, "m")) == "folder/films/long.mp4"


def test_guidance_is_not_distilled_from_clips_without_captions() -> None:
    guided, plain = load_recipe("magic141-cfg-dmd2"), load_recipe("magic141-4step-8xh100")
    silent = selection([replace(clip, scores={}) for clip in CLIPS])
    spoken = selection([scored_clip("talks", caption="A man talks."), scored_clip("silent")])
    assert silent.counts["accepted"] and spoken.counts["accepted"] == 2
    demand_captions(guided, spoken)
    demand_captions(plain, silent)
    with pytest.raises(ExplainedError, match="no accepted clip has a caption, and magic distils"):
        demand_captions(guided, silent)
