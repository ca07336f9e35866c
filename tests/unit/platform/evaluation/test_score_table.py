"""The table of scores: ours beside the papers', numbers where there are some, else reasons."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from magicdistill.models.metrics.columns.registry import METRICS, dimensions
from magicdistill.models.metrics.results import AbsentMetric, Metric, Uncertainty
from magicdistill.platform.evaluation.paper_results import PaperTable, paper_tables, tables_of
from magicdistill.platform.evaluation.score_plots import plot_scores
from magicdistill.platform.evaluation.score_table import OURS, ScoreRow, ScoreTable

MISSING = AbsentMetric("no folder of metric weights was given")
COLLAPSED = AbsentMetric("no numbers")


def row(method: str, nfe: int = 4, **numbers: float) -> ScoreRow:
    metrics: dict[str, Metric] = dict.fromkeys(METRICS.names(), MISSING)
    return ScoreRow(method, nfe, metrics | numbers)


def table(protocol: str, *rows: ScoreRow, columns: tuple[str, ...] = ()) -> ScoreTable:
    return ScoreTable(protocol, columns, rows, {"seed": 3})


def test_the_table_has_the_metrics_that_are_there() -> None:
    found = table("own", row("real", 0, fid=0.0, lpips=0.0), row("student", fid=31.1, lpips=0.25))
    assert found.cells() == [
        {"method": "real", "NFE ↓": "", "FID ↓": "0.00", "LPIPS ↓": "0.0000", "source": OURS},
        {"method": "student", "NFE ↓": "4", "FID ↓": "31.10", "LPIPS ↓": "0.2500", "source": OURS},
    ]
    lines = found.text().splitlines()
    assert lines[0].split() == ["method", "NFE", "↓", "FID", "↓", "LPIPS", "↓", "source"]
    assert f"absent fvd: {MISSING.reason}" in lines
    assert not any(line.startswith("absent fid") for line in lines)


def test_a_reason_of_some_ways_names_them() -> None:
    collapsed = ScoreRow("student", 4, dict.fromkeys(METRICS.names(), COLLAPSED))
    reasons = table("own", row("real", 0, fid=0.0), collapsed).reasons()
    assert "absent fid (student): no numbers" in reasons
    assert f"absent fvd (real): {MISSING.reason}" in reasons


def test_the_papers_rows_stand_first_and_say_where_they_are_from() -> None:
    found = table("vfhq", row("student", fid=40.0), columns=("fid", "fvd", "lpips"))
    first, *_, last = found.cells()
    assert first == {
        "method": "Euler", "NFE ↓": "28", "FID ↓": "31.16", "FVD ↓": "170.07", "LPIPS ↓": "-",
        "source": "paper: 002, table 4",
    }  # fmt: skip
    assert (last["source"], last["FVD ↓"]) == (OURS, "absent")
    assert f"absent lpips: {MISSING.reason}" in found.reasons()
    assert not any("motion" in reason for reason in found.reasons())


def test_steps_are_not_called_evaluations() -> None:
    cells = table("portrait-vbench", row("student"), columns=dimensions()).cells()
    assert cells[0]["NFE ↓"] == "28 steps" and cells[-1]["NFE ↓"] == "4"


def test_intervals_and_the_floor_stand_beside_the_numbers(tmp_path: Path) -> None:
    real = replace(row("real", 0, fid=0.0), beside={"fid": Uncertainty(halves=20.0)})
    beside = {
        "fid": Uncertainty((29.0, 33.25), 51.0),
        "kid": Uncertainty((0.5, 0.7), 0.65, 0.0125),
        "lpips": Uncertainty((0.2, 0.3)),
    }
    student = replace(row("student", fid=31.0, kid=0.6, lpips=0.25), beside=beside)
    found = table("own", real, student)
    cells = found.cells()[1]
    assert cells["FID ↓"] == "31.00 [29.00, 33.25]"
    assert cells["KID ↓"] == "0.6000 ± 0.0125 [0.5000, 0.7000]"
    assert cells["LPIPS ↓"] == "0.2500 [0.2000, 0.3000]"
    assert found.halves() == [
        {"at halves": "real, the floor", "FID ↓": "20.00", "KID ↓": "-"},
        {"at halves": "student", "FID ↓": "51.00", "KID ↓": "0.6500"},
    ]
    path = found.save(tmp_path)
    assert ScoreTable.load(path) == found
    stored = json.loads(path.read_text())["rows"][1]
    assert stored["interval"]["fid"] == [29.0, 33.25] and stored["halves"]["fid"] == 51.0
    page = path.with_suffix(".md").read_text()
    assert "| real, the floor | 20.00 | - |" in page
    assert "real, the floor  20.00  -" in found.text()


def test_a_table_without_distances_has_no_floor() -> None:
    assert table("own", row("student", lpips=0.25)).halves() == []


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    found = table("vfhq", row("student", fid=40.0), columns=("fid", "fvd"))
    path = found.save(tmp_path / "new")
    assert ScoreTable.load(path) == found
    page = (tmp_path / "new" / "scores.md").read_text()
    assert "| MagicDistillation w/o reg. loss | 4 | 32.37 | 163.40 | paper: 002, table 4 |" in page
    assert "- seed: 3" in page


@pytest.mark.parametrize(
    "printed",
    [printed for printed in paper_tables() if "average" in printed.columns],
    ids=lambda printed: printed.source,
)
def test_a_paper_s_average_is_the_mean_of_its_columns(printed: PaperTable) -> None:
    for method, _, *values in printed.rows:
        *dimensions, average = map(float, values)
        assert average == pytest.approx(sum(dimensions) / len(dimensions), abs=2e-4), method


def test_every_protocol_of_the_papers_has_rows() -> None:
    counts = {
        name: [len(printed.rows) for printed in tables_of(name)]
        for name in ("vfhq", "hdtf", "celebv", "portrait-vbench", "i2v-vbench")
    }
    assert counts == {
        "vfhq": [7], "hdtf": [7], "celebv": [7], "portrait-vbench": [10, 4, 3, 7], "i2v-vbench": [7]
    }  # fmt: skip
    assert tables_of("portrait-tiny") == []


def test_plots_are_drawn_of_what_is_there(tmp_path: Path) -> None:
    assert plot_scores(tmp_path, table("own", row("student"))) == []
    paths = plot_scores(tmp_path, table("hdtf", row("student", fid=30.0), row("real", 0, fid=0.0)))
    assert [path.name for path in paths] == ["bars.png", "nfe.png"]
    for path in paths:
        with Image.open(path) as picture:
            assert min(picture.size) > 200
