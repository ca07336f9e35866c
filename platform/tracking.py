"""MLflow: what a run's owner reads."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from magicdistill.platform.config import TrackingConfig
from magicdistill.platform.polling import Tail, polling
from magicdistill.platform.recipe import flatten
from magicdistill.platform.run_directory import RunDirectory, write_text

MAX_PARAM_CHARS = 500
BATCH = 100
TABLES = "mlflow.loggedArtifacts"
"""The tag in which MLflow's pages look for files to show as tables."""
Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker:
    """One MLflow run, beside the run directory from which it can be rebuilt."""

    def __init__(self, client: MlflowClient, run: RunDirectory, run_id: str, *, new: bool) -> None:
        self.client, self.run, self.run_id = client, run, run_id
        self._metrics = Tail(run.metrics_path, from_start=True)
        self._tracked_steps = set() if new else {row["step"] for row in run.metrics()}
        self._tracked_samples = set() if new else set(run.samples.iterdir())

    @classmethod
    def start(
        cls, config: TrackingConfig, run: RunDirectory, tags: Mapping[str, str] | None = None
    ) -> "Tracker":
        """Open the run's MLflow run, or continue it where the run directory names one.

        A new one receives the recipe as parameters, the code's commit as tags, and recipe,
        changes and package versions as artifacts.
        """
        root = run.path.parent
        client = MlflowClient(tracking_uri=config.uri or f"sqlite:///{root / 'mlflow.db'}")
        link = run.path / "mlflow.json"
        if link.exists():
            tracker = cls(client, run, json.loads(link.read_text())["run_id"], new=False)
            client.update_run(tracker.run_id, status="RUNNING")
        else:
            folder = None if config.uri else (root / "mlartifacts").as_uri()
            experiment = _experiment(client, config.experiment, folder)
            run_id = client.create_run(experiment, run_name=run.path.name).info.run_id
            tracker = cls(client, run, run_id, new=True)
            tracker._describe()
            write_text(link, json.dumps({"run_id": run_id}))
        client.log_batch(
            tracker.run_id, tags=[RunTag(name, value) for name, value in (tags or {}).items()]
        )
        tracker.artifact(run.recipe_path)
        return tracker

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Add one point to each curve."""
        self._log([(step, metrics)])

    def params(self, values: Mapping[str, object]) -> None:
        """Name what the run was made with.

        MLflow's parameters never change: where a resumed run has another value than before, that
        becomes the tag `changed.<name>`.
        """
        there = self.client.get_run(self.run_id).data.params
        texts = {name: str(value)[:MAX_PARAM_CHARS] for name, value in values.items()}
        each = (Param(name, text) for name, text in texts.items() if name not in there)
        while batch := list(islice(each, BATCH)):
            self.client.log_batch(self.run_id, params=batch)
        for name, text in texts.items():
            if there.get(name, text) != text:
                self.client.set_tag(self.run_id, f"changed.{name}", text)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a file or a folder: pictures, clips, weights."""
        if path.is_dir():
            self.client.log_artifacts(self.run_id, str(path), folder)
        else:
            self.client.log_artifact(self.run_id, str(path), folder)

    def table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Store rows with the same keys as the table `name`."""
        columns = list(rows[0])
        content = {"columns": columns, "data": [[row[key] for key in columns] for row in rows]}
        self.client.log_dict(self.run_id, content, f"{name}.json")
        tables = json.loads(self.client.get_run(self.run_id).data.tags.get(TABLES, "[]"))
        entry = {"path": f"{name}.json", "type": "table"}
        if entry not in tables:
            self.client.set_tag(self.run_id, TABLES, json.dumps([*tables, entry]))

    @contextmanager
    def mirror(self, every_s: float = 1.0) -> Iterator[None]:
        """Track, while the body runs, the metrics and samples that workers write to the run."""
        with polling(self._mirror, every_s):
            yield

    def end(self, status: Status = "FINISHED") -> None:
        """Close the MLflow run."""
        self.client.set_terminated(self.run_id, status)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End as finished, as failed where an exception passes, as killed where the user stops."""
        failed: Status = "FAILED" if kind and issubclass(kind, Exception) else "KILLED"
        self.end(failed if kind else "FINISHED")

    def _mirror(self) -> None:
        rows = [json.loads(line) for line in self._metrics.lines()]
        points = [(row.pop("step"), row) for row in rows]
        self._log([point for point in points if point[0] not in self._tracked_steps])
        self._tracked_steps |= {step for step, _ in points}
        for path in sorted(set(self.run.samples.glob("[!.]*")) - self._tracked_samples):
            self.artifact(path, "samples")
            self._tracked_samples.add(path)

    def _log(self, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        metrics = (
            Metric(name, float(value), timestamp=_now_ms(), step=step)
            for step, values in points
            for name, value in values.items()
        )
        while batch := list(islice(metrics, BATCH)):
            self.client.log_batch(self.run_id, metrics=batch)

    def _describe(self) -> None:
        self.params(flatten(self.run.recipe().model_dump(mode="json")))
        provenance = self.run.provenance()
        tags = {
            "mlflow.source.git.commit": provenance.commit or "unknown",
            "code.changed": str(bool(provenance.diff)).lower(),
            "run.path": str(self.run.path),
        }
        self.client.log_batch(self.run_id, tags=[RunTag(*tag) for tag in tags.items()])
        self.client.log_dict(self.run_id, provenance.packages, "code/packages.json")
        self.client.log_text(self.run_id, provenance.diff, "code/changes.diff")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return experiment.experiment_id
    return client.create_experiment(name, artifact_location=artifacts)
