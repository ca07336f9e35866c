"""Plans with measured speeds."""

import json
from pathlib import Path

import pytest

from magicdistill.platform.config.overrides import RecipeError
from magicdistill.platform.config.recipe import load_recipe
from magicdistill.platform.planning.gpu_rates import measured_mfu
from magicdistill.platform.planning.plan import GPUS, changed, plan

RECIPE = load_recipe("magic141-4step-8xh100", ["--kernels.attention", "flash"])


def write(folder: Path, gpu: str, **speeds: float) -> Path:
    path = folder / "gpu.json"
    values = {"gpu": gpu, "operations_per_s": speeds}
    path.write_text(json.dumps({"rows": [], "rates": values}))
    return path


def test_a_plan_counts_with_the_speed_of_its_kernel(tmp_path: Path) -> None:
    peak = GPUS["h100"].operations_per_s
    file = write(tmp_path, "h200", sdpa=0.1 * peak, flash=0.5 * peak)
    assert measured_mfu(file, RECIPE) == pytest.approx(0.5)
    slow = changed(RECIPE, {"kernels.attention": "sdpa"})
    seconds = [plan(r, mfu=measured_mfu(file, r)).seconds_per_cycle for r in (RECIPE, slow)]
    assert seconds[1] == pytest.approx(5 * (seconds[0] or 0))


@pytest.mark.parametrize(
    ("gpu", "speeds", "message"),
    [
        ("h100", {"sdpa": 1e14}, "kernels.attention flash was not measured; there are sdpa"),
        ("b200", {"flash": 1e14}, "plan for --cluster.gpu b200"),
        ("abacus", {"flash": 1.0}, "no rates of a known GPU"),
    ],
)
def test_rates_that_say_nothing_about_the_recipe_are_refused(
    tmp_path: Path, gpu: str, speeds: dict[str, float], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        measured_mfu(write(tmp_path, gpu, **speeds), RECIPE)


def test_a_tiny_result_and_a_missing_file_have_no_rates(tmp_path: Path) -> None:
    tiny = tmp_path / "tiny.json"
    tiny.write_text('{"rows": []}')
    for file in (tiny, tmp_path / "none.json"):
        with pytest.raises(RecipeError, match=r"python benchmarks/gpu\.py"):
            measured_mfu(file, RECIPE)
