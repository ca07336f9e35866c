"""A model that was registered in MLflow is loaded from there and samples what it did before."""

from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from magicdistill.platform.config.recipe import load_recipe
from magicdistill.platform.export.pretrained_model import find_pretrained
from magicdistill.platform.inference.mlflow_model import Generator, register
from magicdistill.platform.inference.sample_video import VideoSampler
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.tracking.tracker import Tracker

ASSETS = Path(__file__).parents[4] / "assets" / "portrait-tiny"
NAME = "portrait-tiny-smoke"


@pytest.mark.slow
def test_a_registered_model_loads_and_samples_as_its_weights_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory.create(tmp_path / "runs", load_recipe(NAME))
    student, vae = ASSETS / "student-4step", ASSETS / "vae"
    for _ in range(2):  # told twice, it is registered once
        with Tracker.start(run.recipe().tracking, run, register=register) as tracker:
            tracker.weights("model.teacher", "teacher", ASSETS / "teacher")
            tracker.model(NAME, student, vae, "---\nlibrary_name: diffusers\n---\n# A card")
    uri = f"sqlite:///{run.path.parent / 'mlflow.db'}"
    client = MlflowClient(uri)
    [version] = client.search_model_versions(f"name = '{NAME}'")
    text = version.description or ""
    assert version.run_id == tracker.run_id and f'load_model("models:/{NAME}/1")' in text
    assert text.endswith("# A card") and "diffusers" not in text
    outputs = client.get_run(tracker.run_id or "").outputs
    assert outputs is not None
    models = [client.get_logged_model(model.model_id) for model in outputs.model_outputs]
    assert [model.artifact_location for model in models] == [version.source]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    loaded = mlflow.pyfunc.load_model(f"models:/{NAME}/{version.version}")
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    videos = loaded.predict(frames, params={"seed": 3})
    direct = Generator(VideoSampler(find_pretrained(str(student), vae=str(vae))))
    assert videos.shape == (2, 17, 64, 64, 3)
    assert np.array_equal(videos, direct.predict(frames, {"seed": 3}))
    assert not np.array_equal(videos, direct.predict(frames, {"seed": 4}))
    with pytest.raises(MlflowException, match="schema"):
        loaded.predict(frames.astype(np.float32))
