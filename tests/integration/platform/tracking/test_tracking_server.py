"""Tracking on a real MLflow server that goes away and comes back."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from magicdistill.platform.config.recipe import load_recipe
from magicdistill.platform.config.sections import TrackingConfig
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.tracking.event_log import EventLog
from magicdistill.platform.tracking.tracker import Tracker
from tests.mlflow_server import MlflowServer

ROOT = Path(__file__).parents[4]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    found = MlflowServer(tmp_path)
    yield found
    found.kill()


@pytest.fixture
def run(tmp_path: Path, server: MlflowServer) -> RunDirectory:
    recipe = load_recipe("portrait-tiny-smoke", ["--tracking.uri", server.uri])
    return RunDirectory.create(tmp_path / "runs", recipe)


def config(server: MlflowServer) -> TrackingConfig:
    return TrackingConfig(uri=server.uri)


def train(run: RunDirectory, steps: range) -> None:
    for step in steps:
        run.append_metrics(step, {"loss": 1 / step})
        (run.samples / f"step-{step}.txt").write_text(str(step))


def wait_until_sent(run: RunDirectory, server: MlflowServer) -> None:
    until_s = time.monotonic() + 120
    while EventLog(run).num_unsent(server.uri):
        assert time.monotonic() < until_s
        time.sleep(0.2)


def send(run: RunDirectory) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "jobs/track.py", str(run.path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def assert_all_there(run: RunDirectory, server: MlflowServer, steps: range) -> None:
    client = MlflowClient(server.uri)
    run_id = EventLog(run).progress(server.uri).run_id or ""
    found = client.get_run(run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params["method.name"] == "magic-gt"
    points = client.get_metric_history(run_id, "loss")
    assert [(point.step, point.value) for point in points] == [(step, 1 / step) for step in steps]
    files = {file.path for file in client.list_artifacts(run_id, "samples")}
    assert files == {f"samples/step-{step}.txt" for step in steps}
    assert len(client.search_runs([found.info.experiment_id])) == 2  # it and its parent


@pytest.mark.slow
def test_a_server_that_is_away_at_the_start_and_killed_midway_receives_everything_once(
    run: RunDirectory, server: MlflowServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with Tracker.start(config(server), run) as tracker, tracker.mirror(every_s=0.1):
        train(run, range(1, 4))
        server.start()
        train(run, range(4, 7))
        wait_until_sent(run, server)
        server.kill()
        train(run, range(7, 10))
        time.sleep(1)
        server.start()
        train(run, range(10, 13))
    assert_all_there(run, server, range(1, 13))
    said = capsys.readouterr().out
    assert said.count("MLflow is away") == said.count("MLflow is back") == 2


@pytest.mark.long
def test_a_run_ends_without_its_server_and_says_how_to_send_the_rest(
    run: RunDirectory, server: MlflowServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with Tracker.start(config(server), run) as tracker, tracker.mirror(every_s=0.1):
        train(run, range(1, 4))
        start_s = time.monotonic()
    assert time.monotonic() - start_s < 60
    assert f"python jobs/track.py {run.path}" in capsys.readouterr().out
    away = send(run)
    assert away.returncode == 1 and "are not sent" in away.stdout, away.stdout + away.stderr
    server.start()
    sent = send(run)
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert_all_there(run, server, range(1, 4))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_distillation_does_not_need_its_server(tmp_path: Path, server: MlflowServer) -> None:
    command = [sys.executable, "jobs/distill.py", "--recipe", "portrait-tiny-smoke"]
    command += ["--runs", str(tmp_path / "runs"), "--tracking.uri", server.uri]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing is lost" in done.stdout
    run = RunDirectory.open("latest", root=tmp_path / "runs")
    server.start()
    assert send(run).returncode == 0
    client = MlflowClient(server.uri)
    found = client.get_run(EventLog(run).progress(server.uri).run_id or "")
    assert found.data.metrics["evaluation/student/proxy_frechet_distance"] > 0
    assert [int(version.version) for version in client.search_model_versions()] == [1]
