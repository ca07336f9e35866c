"""Register a finished generator as a model that MLflow can load and sample from."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from mlflow.entities import LoggedModelOutput
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc import add_to_model
from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

from magicdistill.data_pipeline.config import Bucket, nearest_bucket
from magicdistill.data_pipeline.latents.windows import fit
from magicdistill.models.checksums import digest_weights
from magicdistill.platform.export.pretrained_model import find_pretrained
from magicdistill.platform.inference.contact_sheets import to_uint8
from magicdistill.platform.tracking.events import (
    SHA256,
    Destination,
    FinalModel,
    find_model,
    model_name,
)

if TYPE_CHECKING:
    from magicdistill.platform.inference.sample_video import VideoSampler

TRANSFORMER, VAE = "transformer", "vae"
USE = """Load it where MagicDistill is installed, with this server as `MLFLOW_TRACKING_URI`:

```python
generator = mlflow.pyfunc.load_model("models:/{name}/{version}")
videos = generator.predict(first_frames, params={{"seed": 0}})  # uint8, n y x 3 to n t y x 3
```

"""


def register(model: FinalModel, to: Destination) -> None:
    """Upload the weights with what MLflow needs to load them, and add a version to the registry.

    Calling it again changes nothing.
    """
    transformer = to.run.path / model.transformer
    model_id = _upload(model, to, transformer, digest_weights(transformer))
    client, recipe = to.client, to.run.recipe()
    outputs = client.get_run(to.run_id).outputs
    if outputs is None or model_id not in (one.model_id for one in outputs.model_outputs):
        client.log_outputs(to.run_id, [LoggedModelOutput(model_id, recipe.schedule.num_cycles)])
    name = model_name(model.name)
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description=f"Generators of the recipe `{name}`.")
    # not `models:/...`, which a store without a server looks up in MLflow's global one
    source = client.get_logged_model(model_id).artifact_location
    versions = client.search_model_versions(f"name = '{name}'")
    if any(version.run_id == to.run_id and version.source == source for version in versions):
        return
    tags = {"run": to.run.path.name, "method": recipe.method.name}
    made = client.create_model_version(name, source, to.run_id, tags, model_id=model_id)
    text = USE.format(name=name, version=made.version) + _without_front_matter(model.card)
    client.update_model_version(name, made.version, text)


def _upload(model: FinalModel, to: Destination, transformer: Path, sha256: str) -> str:
    """Return MLflow's id of the weights, after uploading them if they are missing."""
    if model_id := find_model(to, sha256):
        return model_id
    created = to.client.create_logged_model(
        to.experiment_id,
        name=model_name(model.name),
        source_run_id=to.run_id,
        params={"method": to.run.recipe().method.name},
        model_type="generator",
    )
    model_id = created.model_id
    with tempfile.TemporaryDirectory() as folder:
        spec = Model(run_id=to.run_id, model_id=model_id, artifact_path=created.artifact_location)
        spec.signature = signature(to.run.recipe().data.bucket)
        add_to_model(spec, loader_module=__name__)
        spec.save(f"{folder}/MLmodel")
        (Path(folder) / "README.md").write_text(model.card)
        to.client.log_model_artifacts(model_id, folder)
    parts = {TRANSFORMER: transformer, VAE: to.run.path / model.vae}
    for name, path in parts.items():
        to.client.log_model_artifacts(model_id, str(path), name)
    to.client.log_model_artifact(model_id, str(to.run.recipe_path), TRANSFORMER)
    to.client.finalize_logged_model(model_id, "READY")
    to.client.set_logged_model_tags(model_id, {SHA256: sha256})  # now it is complete
    return model_id


def _without_front_matter(card: str) -> str:
    """Remove the YAML header of a model card, which MLflow would show as text."""
    return card.split("\n---\n", 1)[-1] if card.startswith("---\n") else card


def signature(bucket: Bucket) -> ModelSignature:
    """Return what a model takes and gives: first frames (n y x 3) to videos (n t y x 3), uint8."""
    kind, size = np.dtype(np.uint8), (bucket.num_frames, bucket.height, bucket.width)
    return ModelSignature(
        inputs=Schema([TensorSpec(kind, (-1, -1, -1, 3), "first_frame")]),
        outputs=Schema([TensorSpec(kind, (-1, *size, 3), "video")]),
        params=ParamSchema([ParamSpec("seed", "long", 0)]),
    )


class Generator:
    """A loaded model with the interface of `mlflow.pyfunc`."""

    def __init__(self, sampler: "VideoSampler") -> None:
        self.sampler = sampler

    def predict(self, frames: Any, params: dict[str, Any] | None = None) -> np.ndarray:
        """Return videos, uint8 (n t y x 3), that begin with first frames, uint8 (n y x 3)."""
        seed = int((params or {}).get("seed", 0))
        found = frames["first_frame"] if isinstance(frames, dict) else frames
        return np.stack([self._video(frame, seed) for frame in found])

    def _video(self, frame: np.ndarray, seed: int) -> np.ndarray:
        from magicdistill.platform.inference.orders import Order, plan_windows

        bucket = nearest_bucket(frame.shape[1], frame.shape[0], self.sampler.model.buckets)
        order = Order(image=Path(), out=Path(), seed=seed)
        parts = self.sampler.parts(fit(frame, bucket), order, plan_windows(order, bucket))
        return rearrange(to_uint8(torch.cat(list(parts), 2)[0]), "c t y x -> t y x c")


def _load_pyfunc(path: str) -> Generator:
    """Load what was uploaded; MLflow calls the function of this name."""
    from magicdistill.platform.inference.sample_video import VideoSampler

    folder = Path(path)
    return Generator(
        VideoSampler(find_pretrained(str(folder / TRANSFORMER), vae=str(folder / VAE)))
    )
