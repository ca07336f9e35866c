"""What a run logs to MLflow: one small type for each thing, which knows how it is sent."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    Metric,
    Param,
    RunTag,
)
from pydantic import ConfigDict, Field

from magicdistill.models.checksums import digest_weights
from magicdistill.models.config import Config
from magicdistill.platform.runs.run_directory import RunDirectory

MAX_PARAM_CHARS = 500
MAX_DIGEST_CHARS = 36
PARAMS_AT_ONCE, METRICS_AT_ONCE = 100, 1000
TABLES = "mlflow.loggedArtifacts"
"""The tag in which MLflow's pages look for files to show as tables."""
SHA256 = "weights.sha256"
"""The tag by which weights are known as the same ones."""
Source = Literal["cycle", "exam", "job", "machine"]
"""Where points come from: a row of the run's metrics, scores of a checkpoint (`exam`), what a job
measured, or the load of its machine. Event logs hold those of jobs alone; in runs of version 0.1
they hold the others too, which are read from their files now."""
Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class Destination:
    """An MLflow run that is there, and the run directory that it is about."""

    client: MlflowClient
    run: RunDirectory
    experiment_id: str
    run_id: str
    register: "Register | None" = None
    """Adds a finished model to the registry; this room cannot, for it imports no networks."""

    def tag(self, values: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self.client.log_batch(self.run_id, tags=[RunTag(*tag) for tag in values.items()])


class Event(Config, ABC):
    """One thing to log; paths within the run's folder are relative to it, since that may move."""

    model_config = ConfigDict(ser_json_inf_nan="constants", allow_inf_nan=True)

    @abstractmethod
    def send(self, to: Destination) -> None:
        """Send it; a second time changes nothing."""


class Key(Config):
    """What identifies a run in every store, and the name that people read there."""

    key: str
    name: str


class Begin(Event):
    """The first of every event log: what the run is."""

    kind: Literal["begin"] = "begin"
    time_ms: int
    own: Key
    experiment: str
    parent: Key | None
    """Null is the parent run of the experiment."""

    def send(self, to: Destination) -> None:
        """Do nothing: whoever opens the run has read it."""


class Tags(Event):
    """Tags, which later ones of the same name replace."""

    kind: Literal["tags"] = "tags"
    values: dict[str, str]

    def send(self, to: Destination) -> None:
        """Set them."""
        to.tag(self.values)


class Params(Event):
    """Parameters, which never change: another value becomes the tag `changed.<name>`."""

    kind: Literal["params"] = "params"
    values: dict[str, str]

    def send(self, to: Destination) -> None:
        """Add those that are not there."""
        there = to.client.get_run(to.run_id).data.params
        texts = {name: text[:MAX_PARAM_CHARS] for name, text in self.values.items()}
        each = (Param(name, text) for name, text in texts.items() if name not in there)
        while batch := list(islice(each, PARAMS_AT_ONCE)):
            to.client.log_batch(to.run_id, params=batch)
        changed = {name: text for name, text in texts.items() if there.get(name, text) != text}
        to.tag({f"changed.{name}": text for name, text in changed.items()})


class Points(Event):
    """One point of each curve."""

    kind: Literal["points"] = "points"
    source: Source
    time_ms: int
    step: int
    values: dict[str, float]

    def send(self, to: Destination) -> None:
        """Add them."""
        send_points([self], to)


def send_points(found: Sequence[Points], to: Destination) -> None:
    """Add the points of many steps with few calls."""
    metrics = (
        Metric(name, value, timestamp=points.time_ms, step=points.step)
        for points in found
        for name, value in points.values.items()
    )
    while batch := list(islice(metrics, METRICS_AT_ONCE)):
        to.client.log_batch(to.run_id, metrics=batch)


class File(Event):
    """A file or a folder: pictures, clips, weights."""

    kind: Literal["file"] = "file"
    path: str
    folder: str | None = None
    mtime_ns: int = 0

    def send(self, to: Destination) -> None:
        """Upload it."""
        path = to.run.path / self.path
        if path.is_dir():
            to.client.log_artifacts(to.run_id, str(path), self.folder)
        else:
            to.client.log_artifact(to.run_id, str(path), self.folder)


class Text(Event):
    """A file with this text."""

    kind: Literal["text"] = "text"
    name: str
    text: str

    def send(self, to: Destination) -> None:
        """Upload it."""
        to.client.log_text(to.run_id, self.text, self.name)


class Table(Event):
    """Rows that MLflow shows as a table."""

    kind: Literal["table"] = "table"
    name: str
    columns: list[str]
    data: list[list[Any]]

    def send(self, to: Destination) -> None:
        """Upload it, and let the pages know that it is one."""
        file = f"{self.name}.json"
        to.client.log_dict(to.run_id, {"columns": self.columns, "data": self.data}, file)
        tables = json.loads(to.client.get_run(to.run_id).data.tags.get(TABLES, "[]"))
        event = {"path": file, "type": "table"}
        if event not in tables:
            to.client.set_tag(to.run_id, TABLES, json.dumps([*tables, event]))


class Latents(Event):
    """A version of the latents that the run reads."""

    kind: Literal["latents"] = "latents"
    purpose: str
    facts: dict[str, str]

    def send(self, to: Destination) -> None:
        """Make it an input of the run."""
        version = self.facts["latents"]
        dataset = Dataset(
            name=f"{self.purpose} latents",
            digest=version[-MAX_DIGEST_CHARS:],
            source_type="magicdistill",
            source=json.dumps({"latents": version}),
            profile=json.dumps(self.facts),
        )
        tags = [InputTag("mlflow.data.context", self.purpose)]
        to.client.log_inputs(to.run_id, datasets=[DatasetInput(dataset, tags)])


class Weights(Event):
    """Weights that the run starts from or learns from, by the recipe's field."""

    kind: Literal["weights"] = "weights"
    field: str
    location: str
    """What the recipe says."""
    path: str

    def send(self, to: Destination) -> None:
        """Make them an input of the run: the model that another run made, where they are one."""
        sha256 = digest_weights(to.run.path / self.path)
        to.tag({f"lineage.{self.field}": self.location, f"lineage.{self.field}.sha256": sha256})
        model = find_model(to, sha256) or self._create(to, sha256)
        to.client.log_inputs(to.run_id, models=[LoggedModelInput(model)])

    def _create(self, to: Destination, sha256: str) -> str:
        name = model_name("-".join(Path(self.path).parts[-2:]))
        tags = {SHA256: sha256, "location": self.location, "mlflow.model.isExternal": "true"}
        model = to.client.create_logged_model(
            to.experiment_id, name=name, tags=tags, model_type="weights"
        )
        to.client.finalize_logged_model(model.model_id, "READY")
        return model.model_id


def find_model(to: Destination, sha256: str) -> str | None:
    """Return the experiment's model with these weights."""
    found = to.client.search_logged_models(
        [to.experiment_id], filter_string=f"tags.`{SHA256}` = '{sha256}'", max_results=1
    )
    return found[0].model_id if found else None


def model_name(text: str) -> str:
    """Return a text with a dash for each character that MLflow forbids in names of models."""
    return "".join("-" if character in "/:.%\"'" else character for character in text)


class FinalModel(Event):
    """The finished generator with its VAE, as a version of a registered model."""

    kind: Literal["final-model"] = "final-model"
    name: str
    transformer: str
    vae: str
    card: str
    """Markdown."""

    def send(self, to: Destination) -> None:
        """Upload and register it; raise LookupError in a process that was given no registrar."""
        if to.register is None:
            raise LookupError("this process registers no models")
        to.register(self, to)


Register = Callable[[FinalModel, Destination], None]


class Ending(Event):
    """How the run goes, or ended."""

    kind: Literal["status"] = "status"
    status: Status
    time_ms: int

    def send(self, to: Destination) -> None:
        """Set the status."""
        if self.status == "RUNNING":
            to.client.update_run(to.run_id, status=self.status)
        else:
            to.client.set_terminated(to.run_id, self.status, end_time=self.time_ms)


AnyEvent = Annotated[
    Begin | Tags | Params | Points | File | Text | Table | Latents | Weights | FinalModel | Ending,
    Field(discriminator="kind"),
]
