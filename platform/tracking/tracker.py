"""Track a run in MLflow: its recipe, metrics, samples, inputs and model."""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

from magicdistill.platform.config.recipe import flatten
from magicdistill.platform.config.sections import TrackingConfig
from magicdistill.platform.runs import logs
from magicdistill.platform.runs.file_polling import polling
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.tracking.event_log import EventLog
from magicdistill.platform.tracking.events import (
    Begin,
    Ending,
    File,
    FinalModel,
    Key,
    Latents,
    Params,
    Points,
    Register,
    Status,
    Table,
    Tags,
    Text,
    Weights,
)
from magicdistill.platform.tracking.sender import NOTE, Sender
from magicdistill.platform.tracking.system_metrics import SystemMonitor


class Tracker:
    """One MLflow run, beside the run directory from which it can be rebuilt.

    What is logged is on the disk when a method returns and goes to MLflow in the background, as do
    the metrics that workers write to the run. What a server that is away does not get by the end is
    sent by the next job of the run, or by `jobs/track.py`.
    """

    def __init__(
        self,
        config: TrackingConfig,
        run: RunDirectory,
        *,
        purpose: str | None = None,
        parent: RunDirectory | None = None,
        register: Register | None = None,
    ) -> None:
        self.run = run
        self.event_log = EventLog(run)
        self.sender = Sender(run, config, self.event_log, register)
        entries = [logged.event for logged in self.event_log.logged_events()]
        self._samples = {(file.path, file.mtime_ns) for file in entries if isinstance(file, File)}
        if not any(isinstance(event, Begin) for event in entries):
            purpose = purpose or run.recipe().method.purpose
            own = Key(key=_key(run), name=f"{purpose}: {run.path.name}")
            above = parent and Key(key=_key(parent), name=parent.path.name)
            begin = {"time_ms": _now_ms(), "experiment": config.experiment}
            self.event_log.add(Begin(own=own, parent=above, **begin))
            self._describe(purpose)

    def num_unsent(self) -> int:
        """Return how many events and rows of metrics the store lacks."""
        return self.event_log.num_unsent(self.sender.store)

    @classmethod
    def start(
        cls,
        config: TrackingConfig,
        run: RunDirectory,
        tags: Mapping[str, str] | None = None,
        *,
        purpose: str | None = None,
        parent: RunDirectory | None = None,
        register: Register | None = None,
    ) -> "Tracker":
        """Open the run's MLflow run, or continue it.

        A new one receives the recipe as parameters, the code's commit as tags, and recipe,
        changes and package versions as artifacts. It stands below `parent`, by default below the
        experiment's own run; `purpose` is by default what its recipe is for. `register` adds a
        finished model to the registry; without it that is left to a job that has one.
        """
        tracker = cls(config, run, purpose=purpose, parent=parent, register=register)
        tracker.params(flatten(run.recipe().model_dump(mode="json")))
        tracker.tags(tags or {})
        tracker.event_log.add(Ending(status="RUNNING", time_ms=_now_ms()))
        tracker.artifact(run.recipe_path)
        return tracker

    @property
    def run_id(self) -> str | None:
        """MLflow's name for the run; None before a server has it."""
        return self.event_log.progress(self.sender.store).run_id

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Add one point to each curve, of what a job has measured."""
        values = {name: float(value) for name, value in metrics.items()}
        self.event_log.add(Points(source="job", time_ms=_now_ms(), step=step, values=values))

    def params(self, values: Mapping[str, object]) -> None:
        """Name what the run was made with.

        MLflow's parameters never change: where a resumed run has another value than before, that
        becomes the tag `changed.<name>`.
        """
        self.event_log.add(Params(values={name: str(value) for name, value in values.items()}))

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self.event_log.add(Tags(values=dict(values)))

    def note(self, markdown: str) -> None:
        """Describe the run to whoever opens it."""
        self.tags({NOTE: markdown})

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a file or a folder: pictures, clips, weights."""
        self.event_log.add(File(path=self._inside(path), folder=folder))

    def table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Store rows with the same keys as the table `name`."""
        columns = list(rows[0])
        data = [[row[key] for key in columns] for row in rows]
        self.event_log.add(Table(name=name, columns=columns, data=data))

    def data(self, lineage: Mapping[str, Mapping[str, str]]) -> None:
        """Name the latents that the run reads, by purpose, as inputs and parameters."""
        self.params(flatten(lineage, "lineage"))
        for purpose, facts in lineage.items():
            self.event_log.add(Latents(purpose=purpose, facts=dict(facts)))

    def weights(self, field: str, location: str, path: Path) -> None:
        """Name weights that the run starts from, by the recipe's field and value, as an input."""
        self.event_log.add(Weights(field=field, location=location, path=self._inside(path)))

    def model(self, name: str, transformer: Path, vae: Path, card: str) -> None:
        """Register the finished generator, with its VAE and its card."""
        inside, vae_inside = self._inside(transformer), self._inside(vae)
        event = FinalModel(name=name, transformer=inside, vae=vae_inside, card=card)
        self.event_log.add(event)

    @contextmanager
    def mirror(self, every_s: float = 1.0, *, watch_machine: bool = False) -> Iterator[None]:
        """Track, while the body runs, the samples that workers write to the run.

        `watch_machine` also tracks the load of this machine.
        """
        with ExitStack() as stack:
            stack.enter_context(polling(self.collect, every_s, "tracking samples", logs.say))
            if watch_machine:
                monitor = SystemMonitor()
                numbers = count(self.event_log.next_number("system-metrics"))
                watch = partial(self._watch, monitor, numbers)
                stack.enter_context(polling(watch, 1.0, "tracking this machine", logs.say))
            yield

    def collect(self) -> None:
        """Log the samples that are new in the run's folder, or were made again."""
        for path in sorted(self.run.samples.glob("[!.]*")):
            self._collect_sample(path)

    def end(self, status: Status = "FINISHED") -> None:
        """Close the MLflow run, and say what could not be sent."""
        self.event_log.add(Ending(status=status, time_ms=_now_ms()))
        self.send_rest()

    def send_rest(self) -> bool:
        """Send all there is; say where it is, or how to send later what could not be sent."""
        if self.sender.finish():
            if page := self.sender.page():
                logs.say(f"MLflow {page}")
            return True
        unsent = self.event_log.num_unsent(self.sender.store)
        logs.say(f"{unsent} entries for MLflow are not sent: {self.sender.explain()}")
        logs.say(f"nothing is lost; send them with python jobs/track.py {self.run.path}")
        return False

    def __enter__(self) -> "Tracker":
        self.sender.start()
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

    def _collect_sample(self, path: Path) -> None:
        """Take over a sample that is new or was made again."""
        inside, mtime_ns = self._inside(path), path.stat().st_mtime_ns
        if (inside, mtime_ns) in self._samples:
            return
        self.event_log.add(File(path=inside, folder="samples", mtime_ns=mtime_ns))
        self._samples.add((inside, mtime_ns))

    def _watch(self, monitor: SystemMonitor, numbers: Iterator[int]) -> None:
        if load := monitor.look():
            self.run.append_system_metrics(next(numbers), load)

    def _inside(self, path: Path) -> str:
        """Return a path from the run's folder on, where it is in there: that may move."""
        path = path.absolute()
        return str(path.relative_to(self.run.path) if path.is_relative_to(self.run.path) else path)

    def _describe(self, purpose: str) -> None:
        provenance = self.run.provenance()
        self.tags(
            {
                "purpose": purpose,
                "mlflow.source.name": "/".join(Path(sys.argv[0]).parts[-2:]),
                "mlflow.source.type": "LOCAL",
                "mlflow.source.git.commit": provenance.commit or "unknown",
                "code.changed": str(bool(provenance.diff)).lower(),
                "run.path": str(self.run.path),
            }
        )
        packages = json.dumps(provenance.packages, indent=2)
        self.event_log.add(Text(name="code/packages.json", text=packages))
        self.event_log.add(Text(name="code/changes.diff", text=provenance.diff))


def send_unsent(
    config: TrackingConfig, run: RunDirectory, register: Register | None = None
) -> bool:
    """Send what a run's jobs could not, or all to a store that has nothing of it yet."""
    tracker = Tracker(config, run, register=register)
    tracker.collect()
    tracker.sender.start()
    return tracker.send_rest()


def _key(run: RunDirectory) -> str:
    return f"{run.path.name}-{run.provenance().run_id}"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
