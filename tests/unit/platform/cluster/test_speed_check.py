"""What is measured before a training, and who is called slow."""

import json
import re
from pathlib import Path

import pytest

from magicdistill.platform.cluster import speed_check
from magicdistill.platform.cluster.speed_check import (
    SlowWorkersError,
    Speeds,
    by_node,
    check_workers,
    least_of,
    slow_ranks,
    table,
    unlike,
    versions,
)
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.config.sections import ClusterConfig, PreflightConfig
from magicdistill.platform.runs.run_directory import RunDirectory

WELL = Speeds(700e12, 2.8e12, 200e9, 30e9)
NONE = Speeds(0, 0, 0, 0)
NODES = ["a"] * 2 + ["b"] * 2


@pytest.mark.parametrize(
    ("changed", "least", "said"),
    [
        ({}, NONE, []),
        ({"matmul": 350e12}, NONE, [r"matmul is slow: rank 3 on b has 350, of a median of 700"]),
        ({"memory": 1e12}, NONE, [r"memory is slow: rank 3 on b has 1e\+03, .* 1.96e\+03 GB/s"]),
        ({"matmul": 0.0, "all_to_all": 1e9}, NONE, ["matmul .* has 0", "all_to_all .* has 1,"]),
        ({}, Speeds(490e12, 1.7e12, 250e9, 10e9), ["all_gather .* rank 0 on a has 200, rank 1"]),
    ],
)
def test_a_rank_is_slow_beside_the_median_or_for_its_gpu(
    changed: dict[str, float], least: Speeds, said: list[str]
) -> None:
    found = list(slow_ranks([WELL, WELL, WELL, WELL._replace(**changed)], NODES, least, 0.7))
    assert len(found) == len(said)
    for line, pattern in zip(found, said, strict=True):
        assert re.search(pattern, line), line


def test_ranks_that_exchange_with_nobody_are_not_slow_at_it() -> None:
    alone = WELL._replace(all_gather=0.0, all_to_all=0.0)
    assert list(slow_ranks([alone], ["a"], Speeds(490e12, 1.7e12, 50e9, 10e9), 0.7)) == []


def test_the_table_has_a_line_for_every_rank_and_the_log_one_for_every_node() -> None:
    speeds = [WELL, WELL._replace(matmul=650e12), WELL, WELL]
    header, *lines = table(speeds, NODES)
    assert "matmul TFLOP/s" in header and len(lines) == 4
    assert lines[1].split() == ["1", "650", "2800", "200", "30", "a"]
    first, second = by_node(speeds, NODES)
    assert first.startswith("node a: matmul 650 to 700 TFLOP/s, memory 2.8e+03 to")
    assert second.startswith("node b: ")


@pytest.mark.parametrize(
    ("name", "least"),
    [("NVIDIA H100 80GB HBM3", 490e12), ("NVIDIA B200", 1100e12), ("NVIDIA A10G", 0), ("none", 0)],
)
def test_a_gpu_is_judged_by_its_own_data_sheet(name: str, least: float) -> None:
    assert least_of(name).matmul == least


def test_a_node_with_other_versions_is_named() -> None:
    found = [{"NCCL": "2.29"}, {"NCCL": "2.29"}, {"NCCL": "2.27"}, {"NCCL": "2.27"}]
    assert list(unlike(found, NODES)) == ["warning: node b has NCCL 2.27, and a has 2.29"]


def test_versions_are_read_where_driver_and_installer_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = tmp_path / "version"
    driver.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.133.20  Release Build\n"
    )
    (tmp_path / "efa_installed_packages").write_text("# EFA installer version: 1.47.0\n# and\n")
    library = tmp_path / "ofi-nccl" / "lib" / "x86_64-linux-gnu" / "libnccl-net-ofi.so"
    library.parent.mkdir(parents=True)
    library.touch()
    monkeypatch.setattr(speed_check, "DRIVER", driver)
    monkeypatch.setattr(speed_check, "EFA", tmp_path)
    found = versions()
    assert found["driver"] == "570.133.20" and found["EFA"] == "1.47.0"
    assert found["EFA plugin"] == "libnccl-net-ofi.so"
    assert found["deepspeed"].startswith("0.") and found["ray"].startswith("2.")
    monkeypatch.setattr(speed_check, "EFA", tmp_path / "nowhere")
    assert versions()["EFA"] == versions()["EFA plugin"] == "none"


def config(**preflight: object) -> ClusterConfig:
    return ClusterConfig(preflight=PreflightConfig.model_validate(preflight))


def test_a_worker_is_measured_in_a_moment_and_its_versions_stay_with_the_run(
    tmp_path: Path, recipe: Recipe
) -> None:
    run = RunDirectory.create(tmp_path / "runs", recipe)
    speeds = speed_check.measure(config(), "cpu")
    assert speeds.matmul > 1e8 and speeds.memory > 1e8 and speeds.all_gather == 0
    check_workers(run, config(), ["10.0.0.1 (aa)"], "cpu")
    assert "node 10.0.0.1 (aa): matmul" in run.progress_path.read_text()
    assert len(run.preflight_path.read_text().splitlines()) == 2
    kept = json.loads(run.provenance_path.read_text())
    assert kept["workers"]["torch"] and kept["run_id"] == run.provenance().run_id


@pytest.mark.parametrize("action", ["warn", "refuse", "off"])
def test_the_recipe_decides_what_slow_workers_do_to_a_run(
    tmp_path: Path, recipe: Recipe, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory.create(tmp_path / "runs", recipe)
    monkeypatch.setitem(speed_check.LEAST, "none", Speeds(1e18, 0, 0, 0))  # of processors
    slow = config(action=action, matmul_size=16, exchange_mib=1)
    if action == "refuse":
        with pytest.raises(SlowWorkersError, match=r"matmul is slow: rank 0 on a has .* TFLOP/s"):
            check_workers(run, slow, ["a"], "cpu")
    else:
        check_workers(run, slow, ["a"], "cpu")
        said = run.progress_path.read_text() if run.progress_path.exists() else ""
        assert ("warning: matmul is slow" in said) == (action == "warn")
        assert bool(said) == (action != "off")
