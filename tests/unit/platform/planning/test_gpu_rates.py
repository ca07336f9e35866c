"""Rates of GPUs: published, measured, and of networks."""

import json
from pathlib import Path
from typing import Any

import pytest

from magicdistill.models.networks.config import AttentionKernel
from magicdistill.platform.config.overrides import RecipeError
from magicdistill.platform.config.recipe import load_recipe
from magicdistill.platform.config.sections import GpuName
from magicdistill.platform.planning.gpu_rates import (
    ATTENTION,
    GPUS,
    Direction,
    find_rates,
    measured_rates,
    network_of,
    planned_kernel,
    published_rates,
)
from magicdistill.platform.planning.plan import changed

RECIPE = load_recipe("magic141-4step-8xh100", ["--kernels.attention", "flash"])
AUTO = changed(RECIPE, {"kernels.attention": "auto"})


def write(folder: Path, gpu: str, **attention: tuple[float, float]) -> Path:
    path = folder / "gpu.json"
    values = {"gpu": gpu, "attention": attention, "linear": 5e14, "memory": 2e12}
    path.write_text(json.dumps({"rows": [], "rates": values}))
    return path


def test_a_plan_counts_with_the_measured_rates_of_its_kernel(tmp_path: Path) -> None:
    file = write(tmp_path, "h100", sdpa=(1e14, 2e14), flash=(3e14, 4e14), cudnn=(5e14, 1e14))
    assert measured_rates(file, RECIPE)[:3] == (Direction(3e14, 4e14), 5e14, 2e12)
    assert measured_rates(file, AUTO).attention.forward == 5e14, "auto is the fastest"
    assert find_rates(file, RECIPE) == measured_rates(file, RECIPE)
    on_h200 = changed(RECIPE, {"cluster.gpu": "h200"})
    assert measured_rates(file, on_h200).memory == pytest.approx(2e12 * 4.8 / 3.35)


@pytest.mark.parametrize(
    ("gpu", "speeds", "message"),
    [
        (
            "h100",
            {"sdpa": (1e14, 1e14)},
            "kernels.attention flash was not measured; there are sdpa",
        ),
        ("b200", {"flash": (1e14, 1e14)}, "plan for --cluster.gpu b200"),
        ("abacus", {"flash": (1e14, 1e14)}, "no rates of a known GPU"),
    ],
)
def test_rates_that_say_nothing_about_the_recipe_are_refused(
    tmp_path: Path, gpu: str, speeds: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        measured_rates(write(tmp_path, gpu, **speeds), RECIPE)


def test_a_tiny_result_and_a_missing_file_have_no_rates(tmp_path: Path) -> None:
    tiny = tmp_path / "tiny.json"
    tiny.write_text('{"rows": []}')
    for file in (tiny, tmp_path / "none.json"):
        with pytest.raises(RecipeError, match=r"make them there with make gpu"):
            measured_rates(file, RECIPE)


def test_published_rates_are_those_of_the_papers() -> None:
    assert ATTENTION["h100"]["flash"] == (370e12, 322e12)
    assert published_rates(AUTO).attention == (595e12, 516e12)
    assert ATTENTION["h100"]["flash3"] == (648e12, 561e12)
    for name, kernels in ATTENTION.items():
        peak = GPUS[name].operations_per_s
        assert all(max(rates) < peak for rates in kernels.values())


@pytest.mark.parametrize(
    ("gpu", "kernel"), [("a100", "flash"), ("h100", "cudnn"), ("b200", "cudnn")]
)
def test_auto_is_planned_as_the_fastest_kernel_that_comes_with_torch(
    gpu: GpuName, kernel: AttentionKernel
) -> None:
    assert planned_kernel("auto", gpu) == kernel


def test_a_kernel_that_a_gpu_lacks_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"kernels\.attention flash3: there is none for a100"):
        planned_kernel("flash3", "a100")


def test_a_gather_takes_its_slowest_way() -> None:
    one_node, five_nodes = network_of("h100", 8), network_of("h100", 40)
    assert one_node.gather_s(8e9) == pytest.approx(7e9 / 360e9, rel=0.01)
    assert five_nodes.gather_s(8e9) == pytest.approx(0.975 * 8e9 / 360e9, rel=0.01)
    slow = network_of("a100", 16)  # 400 Gbit/s between servers
    assert slow.gather_s(8e9) == pytest.approx(4e9 / 40e9, rel=0.01)
    assert network_of("h100", 1).gather_s(8e9) == 0
    small = [network_of("h100", ranks).gather_s(1.0) for ranks in (8, 16, 40, 80)]
    assert small == sorted(small) and small[0] > 1e-5, "a small one takes its latency"
