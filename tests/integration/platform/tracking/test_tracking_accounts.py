"""MLflow's server with accounts, as the Kubernetes manifest starts it: who has none is refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from magicdistill.platform.config.recipe import load_recipe
from magicdistill.platform.config.sections import TrackingConfig
from magicdistill.platform.launch.start_checks import check_tracking
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.tracking.event_log import EventLog
from magicdistill.platform.tracking.tracker import Tracker
from tests.mlflow_server import MlflowServer

pytest.importorskip("flask_wtf", reason="MLflow's accounts take Flask-WTF, see constraints.txt")
ROOT = Path(__file__).parents[4]
SECRET = {"username": "runs", "password": "a-password-of-the-test", "key": "a-key-of-the-test"}


def sidecar() -> tuple[dict[str, Any], str]:
    """Return MLflow's container in the manifest, and its file of accounts."""
    found = list(yaml.safe_load_all((ROOT / "deploy" / "kuberay.yaml").read_text()))
    (cluster,) = (one for one in found if one["kind"] == "RayCluster")
    (accounts,) = (one for one in found if one["kind"] == "ConfigMap")
    _, container = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    return container, accounts["data"]["accounts.ini"]


def values(container: dict[str, Any], secret: dict[str, str]) -> dict[str, str]:
    """Return a container's variables as Kubernetes sets them."""
    return {
        entry["name"]: entry.get("value") or secret[entry["valueFrom"]["secretKeyRef"]["key"]]
        for entry in container["env"]
    }


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    container, accounts = sidecar()
    file = tmp_path / "accounts.ini"
    file.write_text(accounts.replace("/mnt/local", str(tmp_path)))
    options = [word for word in container["args"] if word.startswith("--app-name")]
    environment = values(container, SECRET) | {"MLFLOW_AUTH_CONFIG_PATH": str(file)}
    found = MlflowServer(tmp_path, options, environment)
    found.start()
    yield found
    found.kill()


@pytest.mark.slow
def test_a_client_without_an_account_is_refused_and_a_run_with_one_is_tracked(
    server: MlflowServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    with pytest.raises(MlflowException, match="not authenticated"):
        MlflowClient(server.uri).search_experiments()
    assert "refuses us (401)" in check_tracking(server.uri, tmp_path).text
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", SECRET["username"])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another")
    with pytest.raises(MlflowException, match="not authenticated"):
        MlflowClient(server.uri).search_experiments()
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET["password"])
    assert check_tracking(server.uri, tmp_path).verdict == "ok"
    recipe = load_recipe("portrait-tiny-smoke", ["--tracking.uri", server.uri])
    run = RunDirectory.create(tmp_path / "runs", recipe)
    config = TrackingConfig(uri=server.uri)
    with Tracker.start(config, run) as tracker, tracker.mirror(every_s=0.1):
        for step in (1, 2, 3):
            run.append_metrics(step, {"loss": 1 / step})
            (run.samples / f"step-{step}.txt").write_text(str(step))
    assert tracker.num_unsent() == 0, (capsys.readouterr().out, server.folder)
    client = MlflowClient(server.uri)
    run_id = EventLog(run).progress(server.uri).run_id or ""
    points = client.get_metric_history(run_id, "loss")
    assert [(point.step, point.value) for point in points] == [(1, 1), (2, 1 / 2), (3, 1 / 3)]
    assert len(client.list_artifacts(run_id, "samples")) == 3
    written = (run.path / "mlflow.jsonl").read_text() + capsys.readouterr().out
    assert SECRET["password"] not in written
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    with pytest.raises(MlflowException, match="not authenticated"):
        MlflowClient(server.uri).get_run(run_id)
