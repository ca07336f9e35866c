"""What a run needs is tried before it: on real folders, and with a real server over HTTP."""

import base64
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray

from magicdistill.jobs import distill
from magicdistill.jobs import plan as plan_job
from magicdistill.platform.cluster.node_gpus import local_gpus
from magicdistill.platform.config.recipe import Recipe, load_recipe
from magicdistill.platform.config.validation import RecipeError
from magicdistill.platform.launch.start_checks import (
    Finding,
    check_assets,
    check_start,
    check_tracking,
    demand_start,
    judge_count,
    judge_groups,
    judge_memory,
    judge_speed,
    report_checks,
    write_speed,
)
from magicdistill.platform.planning.budget import budget
from magicdistill.platform.planning.plan import GIB, Plan, plan
from tests.jobs_in_process import apart

__all__ = ["apart"]

ROOT = Path(__file__).parents[4]
ASSETS = ROOT / "assets" / "portrait-tiny"
BIG = "magic141-4step-40xh100"
Flags = Callable[..., Recipe]


@pytest.fixture
def recipe_with(tmp_path: Path) -> Flags:
    """Return the tiny recipe with runs in a folder of the test's, and flags."""
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "one.mp4").write_bytes(b"clip")

    def load(*flags: str) -> Recipe:
        return load_recipe("portrait-tiny", ["--runs", str(tmp_path / "runs"), *flags])

    return load


@pytest.fixture(scope="module")
def big() -> tuple[Recipe, Plan]:
    recipe = load_recipe(BIG)
    return recipe, plan(recipe)


def found(recipe: Recipe) -> dict[str, Finding]:
    return {finding.name: finding for finding in check_start(recipe)}


def assets(recipe: Recipe) -> dict[str, Finding]:
    """Return what is found of weights and sources alone."""
    return {finding.name: finding for finding in check_assets(recipe)}


def test_a_laptops_recipe_is_in_order(
    recipe_with: Flags, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert report_checks(recipe_with())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 and {line.split()[0] for line in lines} == {"ok", "not"}
    assert "not asked GPUs: no cluster" in lines[-1]


def test_weights_that_are_missing_are_named_with_their_path(tmp_path: Path) -> None:
    findings = assets(load_recipe(BIG, ["--assets_root", str(tmp_path)]))
    for field in ("model.vae", "model.teacher"):
        assert findings[field].verdict == "wrong"
        assert f"{tmp_path}/weights/magic141" in findings[field].text
    assert f"{tmp_path}/clips/general" in findings["training source 1 (folder)"].text
    assert f"{tmp_path}/clips/held-out" in findings["held-out source 0 (folder)"].text


def test_without_a_root_the_flag_that_moves_the_assets_is_the_advice() -> None:
    findings = assets(load_recipe(BIG))
    assert "--assets_root DIR" in findings["model.vae"].text


def test_weights_of_another_size_are_refused_with_what_differs(
    recipe_with: Flags, tmp_path: Path
) -> None:
    shutil.copytree(ASSETS / "teacher", tmp_path / "teacher")
    config = tmp_path / "teacher" / "config.json"
    config.write_text(config.read_text().replace('"num_layers": 2', '"num_layers": 20'))
    recipe = recipe_with("--model.teacher", str(tmp_path / "teacher"))
    finding = found(recipe)["model.teacher"]
    assert finding.verdict == "wrong" and "num_layers 20 instead of 2" in finding.text
    with pytest.raises(RecipeError, match=r"model\.teacher: .*num_layers"):
        demand_start(recipe, resumed=False)


def test_an_empty_source_waits_and_a_missing_one_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "clips" / "portraits").mkdir(parents=True)
    findings = assets(load_recipe(BIG, ["--assets_root", str(tmp_path)]))
    assert findings["training source 0 (folder)"].verdict == "waits"
    assert findings["training source 1 (folder)"].verdict == "wrong"


def test_a_folder_that_cannot_be_written_is_wrong(recipe_with: Flags, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    blocked = str(tmp_path / "file" / "runs")
    finding = found(load_recipe("portrait-tiny", ["--runs", blocked]))["write access"]
    assert finding.verdict == "wrong" and blocked in finding.text
    finding = found(recipe_with("--data_root", blocked, "--mirror", str(tmp_path)))["data_root"]
    assert finding.verdict == "wrong" and "can be written" in finding.text


def test_a_disk_that_the_run_would_fill_is_refused_but_not_to_a_resumed_run(
    tmp_path: Path,
) -> None:
    flags = ["--schedule.keep_checkpoints", "1000000", "--runs", str(tmp_path / "runs")]
    finding = found(load_recipe(BIG, flags))["free disk"]
    assert finding.verdict == "wrong" and "schedule.keep_checkpoints" in finding.text
    assert "free disk" not in {f.name for f in check_start(load_recipe(BIG, flags), resumed=True)}


def test_a_bucket_is_written_and_left_as_it_was(recipe_with: Flags, s3: Any) -> None:
    findings = found(recipe_with("--data_root", "s3://bucket/a", "--mirror", "s3://nowhere/b"))
    assert findings["data_root"] == Finding("data_root", "ok", "s3://bucket/a")
    assert findings["mirror"].verdict == "wrong"
    from magicdistill.data_pipeline.io.object_stores import filesystem

    assert filesystem().find("bucket") == []


def test_a_folder_that_writes_too_slowly_for_its_checkpoints_is_told(
    big: tuple[Recipe, Plan], tmp_path: Path
) -> None:
    recipe, made = big
    costs = budget(made)
    assert costs is not None
    assert judge_speed(recipe, made, costs, 1e9).verdict == "ok"
    slow = judge_speed(recipe, made, costs, 2e7)
    assert slow.verdict == "waits" and "schedule.checkpoint_every 50" in slow.text
    assert 1e5 < write_speed(tmp_path) < 1e12
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "verdict"),
    [
        ({}, "waits"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x"}, "ok"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "absent"}, "wrong"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "empty"}, "wrong"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "full"}, "ok"),
    ],
)
def test_the_clusters_token_is_looked_for_where_ray_does(
    environment: dict[str, str],
    verdict: str,
    recipe_with: Flags,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "full").write_text("token\n")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert found(recipe_with("--cluster.address", "auto"))["token"].verdict == verdict
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert found(recipe_with())["token"].verdict == "not asked"


@contextmanager
def server(status: int, body: bytes) -> Iterator[tuple[str, list[str | None]]]:
    """Serve one answer over HTTP; yield the address, and the credentials that come."""
    given: list[str | None] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given.append(self.headers.get("Authorization"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", given
        httpd.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body", "verdict", "said"),
    [
        (200, b'{"experiments": []}', "ok", "http://"),
        (401, b"", "waits", "MLFLOW_TRACKING_USERNAME"),
        (403, b"", "waits", "MLFLOW_TRACKING_PASSWORD"),
        (500, b"", "waits", "answers 500"),
        (200, b"<html>", "waits", "is no MLflow server"),
    ],
)
def test_the_tracking_server_is_asked_with_the_users_credentials(
    status: int,
    body: bytes,
    verdict: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "user")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "word")
    with server(status, body) as (uri, given):
        finding = check_tracking(uri, tmp_path)
    assert finding.verdict == verdict and said in finding.text
    assert given == [f"Basic {base64.b64encode(b'user:word').decode()}"]


def test_a_server_that_is_away_is_told_and_a_file_needs_none(tmp_path: Path) -> None:
    with server(200, b"{}") as (uri, _):
        pass
    finding = check_tracking(uri, tmp_path)
    assert finding.verdict == "waits" and "--tracking.uri" in finding.text
    assert check_tracking(None, tmp_path).text.endswith("mlflow.db")
    assert check_tracking("postgresql://host/db", tmp_path).verdict == "not asked"


def test_too_few_gpus_may_still_come(big: tuple[Recipe, Plan]) -> None:
    assert judge_count(*big, [0, 8, 8, 8, 8, 8]).verdict == "ok"
    few = judge_count(*big, [0, 8, 8, 8, 8])
    assert few.verdict == "waits" and "32 on 4 node(s), 40 wanted" in few.text


@pytest.mark.parametrize(
    ("gpus", "size", "verdict"),
    [
        ([0, 8, 8, 8, 8, 8], 4, "ok"),
        ([0, 8, 8, 8, 8, 8], 5, "wrong"),
        ([5] * 8, 4, "wrong"),
        ([5] * 8, 5, "ok"),
        ([5] * 8 + [8] * 5, 4, "ok"),
        ([5], 4, "ok"),  # too few: `judge_count` says so, and more may come
    ],
)
def test_workers_that_share_a_sample_have_room_on_one_node(
    big: tuple[Recipe, Plan], gpus: list[float], size: int, verdict: str
) -> None:
    cluster = big[0].cluster.model_copy(update={"sequence_parallel": size})
    found = judge_groups(big[0].model_copy(update={"cluster": cluster}), gpus)
    assert found.verdict == verdict and f"cluster.sequence_parallel {size}" in found.text


H100 = ("NVIDIA H100 80GB HBM3", 79.6 * GIB)


@pytest.mark.parametrize(
    ("gpus", "verdict", "said"),
    [
        ({"10.0.0.4": [H100] * 8}, "ok", "42.5 GiB"),
        ({"10.0.0.4": [H100], "10.0.0.5": [("NVIDIA A10G", 22 * GIB)]}, "wrong", "10.0.0.5 has"),
        ({"10.0.0.4": [H100], "10.0.0.5": []}, "wrong", "does not answer on 10.0.0.5"),
        ({"10.0.0.4": [("NVIDIA H200", 140 * GIB)]}, "waits", "cluster.gpu is h100"),
    ],
)
def test_the_gpus_are_compared_with_what_the_plan_counts_on(
    gpus: dict[str, list[tuple[str, float]]],
    verdict: str,
    said: str,
    big: tuple[Recipe, Plan],
) -> None:
    finding = judge_memory(*big, gpus)
    assert finding.verdict == verdict and said in finding.text


def test_a_machines_gpus_are_those_that_its_driver_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert local_gpus() == []
    driver.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559'\n")
    driver.chmod(0o755)
    assert local_gpus() == [("NVIDIA H100 80GB HBM3", 81559 * 2**20)]


def test_what_may_come_is_a_warning_and_no_refusal(
    recipe_with: Flags, capsys: pytest.CaptureFixture[str]
) -> None:
    with server(500, b"") as (uri, _):
        demand_start(recipe_with("--tracking.uri", uri), resumed=False)
    assert "warning: tracking:" in capsys.readouterr().out


def test_a_finding_is_one_line(big: tuple[Recipe, Plan]) -> None:
    line = str(judge_count(*big, [8]))
    assert line.startswith("waits     GPUs: 8 on 1 node(s)") and "\n" not in line


@pytest.fixture
def lost(tmp_path: Path) -> list[str]:
    """Return the flags of a recipe whose clips are not there."""
    source = f"{{kind: folder, path: {tmp_path}/lost, license: mine, mixture: portrait}}"
    (tmp_path / "lost.yaml").write_text(f"extends: portrait-tiny\ndata:\n  sources: [{source}]\n")
    return ["--recipe", str(tmp_path / "lost.yaml"), "--runs", str(tmp_path / "runs")]


def test_a_run_that_would_fail_ends_before_it_has_a_folder_or_a_cluster(
    lost: list[str],
    tmp_path: Path,
    apart: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["jobs/distill.py", *lost])
    with pytest.raises(SystemExit) as ended:
        distill.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "training source 0 (folder)" in said and f"{tmp_path}/lost" in said
    assert list((tmp_path / "runs").iterdir()) == []
    assert not ray.is_initialized()


def test_the_check_prints_all_lines_and_exits_with_2_where_one_is_wrong(
    lost: list[str],
    apart: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for flags, status in ((lost, 2), (["--recipe", "portrait-tiny", *lost[2:]], 0)):
        monkeypatch.setattr(sys, "argv", ["jobs/plan.py", *flags, "--check"])
        with pytest.raises(SystemExit) as ended:
            plan_job.main()
        assert ended.value.code == status
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) >= 9
        assert any(line.startswith("wrong") for line in lines) == (status == 2)
