"""The report of a comparison, with curves and pictures."""

from magicdistill.platform.comparison.comparison_recipe import ComparisonRecipe
from magicdistill.platform.comparison.comparison_report import write_report
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.tracking.tracker import Tracker
from tests.comparisons import comparison, groups, path

__all__ = ["comparison", "groups", "path"]


def test_the_report_has_every_section_curves_and_pictures(
    comparison: ComparisonRecipe, groups: dict[str, list[RunDirectory]], recipe: Recipe
) -> None:
    home = RunDirectory.create(comparison.runs, recipe, comparison.name)
    (home.path / "comparison.yaml").write_text("base: base\n")
    with Tracker.start(recipe.tracking, home) as tracker:
        write_report(comparison, home, groups, [], tracker)
    text = (home.path / "report.md").read_text()
    for part in ("### toy-compare", "| magic |", "### alpha (of magic)", "| as before |"):
        assert part in text
    assert {path.name for path in home.samples.iterdir()} == {
        "comparison.mp4", "comparison.png", "curves-alpha.png", "curves-toy-compare.png",
        "sheet-magic.png", "sheet-teacher.png",
    }  # fmt: skip
