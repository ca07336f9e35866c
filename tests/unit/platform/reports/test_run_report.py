"""The page of a run: whole by itself, and true to what the run recorded."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from magicdistill.data_pipeline.io.whole_files import write_text
from magicdistill.data_pipeline.media.video import write_mp4
from magicdistill.models.metrics.columns.registry import METRICS
from magicdistill.models.metrics.results import AbsentMetric, Metric
from magicdistill.platform.evaluation.score_plots import plot_scores
from magicdistill.platform.evaluation.score_table import ScoreRow, ScoreTable
from magicdistill.platform.reports.run_curves import curves, time_shares
from magicdistill.platform.reports.run_report import best_checkpoint, write_run_report
from magicdistill.platform.runs.run_directory import RunDirectory

DRIFTS = {2: 0.4, 4: 0.1, 6: 0.3}
VOID = {"meta", "img", "link", "br"}


class Page(HTMLParser):
    """Checks that tags close, and collects addresses and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture
def run(tmp_path: Path, recipe) -> RunDirectory:
    run = RunDirectory.create(tmp_path / "runs", recipe)
    latents = {"latents": "abc", "policy": "def", "mixture": "portrait 5"}
    run.store_data({"training": latents})
    for cycle in range(1, 7):
        row = {"critic/fake_score": 0.5 / cycle, "seconds_per_cycle": 2.0, "seconds/forward": 1.5}
        row["seconds/data"] = 0.5
        if cycle in DRIFTS:
            row["health/drift"] = DRIFTS[cycle]
        run.append_metrics(cycle, row)
    return run


def page(run: RunDirectory) -> Page:
    found = Page(write_run_report(run).read_text())
    assert not found.open
    return found


def test_a_run_is_told_whole_and_by_itself(run: RunDirectory) -> None:
    run.mark_best(4)
    Image.new("RGB", (400, 300), "red").save(run.samples / "comparison.png")
    write_mp4(run.samples / "comparison.mp4", np.zeros((4, 32, 32, 3), np.uint8), 24)
    found = page(run)
    assert all(address.startswith("data:") for address in found.addresses)
    kinds = {address.partition(";")[0] for address in found.addresses}
    assert kinds == {"data:image/svg+xml", "data:image/jpeg", "data:video/mp4"}
    assert "unfinished: 6 of 10 cycles" in found.text
    assert "abc" in found.text and "portrait 5" in found.text
    assert "magic, alpha_weak 0.5" in found.text
    assert "Its drift of 0.1 is the least of 3 measured." in found.text
    assert "alpha_strong: 1.0" in found.text  # of the resolved recipe
    assert "75.0 %" in found.text  # forward


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path, recipe) -> None:
    found = page(RunDirectory.create(tmp_path / "runs", recipe))
    assert "No cycle was finished." in found.text and "No data was prepared yet." in found.text


def test_an_ill_run_says_why_it_was_stopped(run: RunDirectory) -> None:
    write_text(run.health_report_path, "unhealthy at cycle 6: <drift> is 3")
    found = page(run)
    assert "unhealthy at cycle 6: <drift> is 3" in found.text
    assert "stopped for its health" in found.text


def test_scores_stand_beside_the_papers(run: RunDirectory) -> None:
    absent: dict[str, Metric] = dict.fromkeys(METRICS.names(), AbsentMetric("no file"))
    rows = (ScoreRow("student", 4, absent | {"fid": 33.25}),)
    table = ScoreTable("vfhq", ("fid", "fvd"), rows, {"inputs": "99 of 100 clips"})
    table.save(run.path / "evaluation" / "vfhq")
    plot_scores(run.path / "evaluation" / "vfhq", table)
    found = page(run)
    for told in ("33.25", "170.07", "paper: 002, table 4", "99 of 100 clips", "absent fvd"):
        assert told in found.text
    assert sum(address.startswith("data:image/png") for address in found.addresses) == 2


def test_without_a_record_the_last_checkpoint_counts(run: RunDirectory) -> None:
    rows = list(run.metrics())
    best = best_checkpoint(run, run.recipe(), rows)
    assert best.cycle == 6 and "The last one counts" in best.why
    assert best.scores == list(DRIFTS.items())
    assert best_checkpoint(run, run.recipe(), []).cycle is None


def test_long_curves_are_thinned_and_keep_their_limits(recipe) -> None:
    rows = [{"step": i, "critic/fake_score": 0.9 + i / 50_000} for i in range(5000)]
    (curve,) = curves(rows, recipe.health)["critic"]
    assert len(curve.svg) < 40_000
    assert b"stroke-dasharray" in curve.svg  # the limit of 1 is near
    (far,) = curves(rows[:100], recipe.health)["critic"]
    assert far.note and b"stroke-dasharray" not in far.svg


def test_shares_of_time_are_of_all_parts() -> None:
    rows = [{"step": i, "seconds/a": 1.0, "seconds/b": 3.0} for i in (1, 2)]
    assert time_shares(rows) == {"b": 0.75, "a": 0.25}
    assert time_shares([]) == {}
