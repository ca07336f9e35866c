"""Sends a run's metrics and events to MLflow from a thread, also after the server was away."""

import getpass
import os
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby, islice

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import RunTag
from mlflow.exceptions import MlflowException

from magicdistill.platform.config.sections import TrackingConfig
from magicdistill.platform.runs import logs
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.tracking.event_log import EventLog, LoggedEvent
from magicdistill.platform.tracking.events import (
    Begin,
    Destination,
    Key,
    Points,
    Register,
    send_points,
)
from magicdistill.platform.tracking.metric_rows import MetricFile, SentRows
from magicdistill.platform.tracking.relocation import ARTIFACTS, STORE, relocate

PARENT = "mlflow.parentRunId"
"""The tag by which MLflow's pages nest runs."""
NOTE = "mlflow.note.content"
"""The tag that MLflow's pages show as the description."""
KEY = "magicdistill.run"
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""MLflow's own patience is minutes; here everything is sent again later."""
EVERY_S, AWAY_S = 0.5, 5.0
"""Pauses between deliveries, where the server answers and where it does not."""
GRACE_S = 10.0
"""How long the end of a run waits for a server that is away."""
POINTS_AT_ONCE = 50
EXPERIMENT_NOTE = """Runs of MagicDistill: press the + beside *all runs* to see them.

Their names begin with what they are for, which is also the tag `purpose`:

| purpose | what |
|---|---|
| data | clips to latents: what was kept, what was rejected and why |
| vae | the decoder of the video VAE |
| teacher | the many-step model, by flow matching |
| distillation | the few-step generator |
| 1-step | the generator of one step |
| comparison | methods side by side, each a run of its own below it |
| evaluation | a model scored beside its teacher |

Every run names the latents and the weights that it read, and its model is among *Models* and in the
registry. The step of all curves is the cycle of training.
"""
PARENT_NOTE = "The run below which all others of the experiment stand; it has nothing of its own."


class Sender:
    """Sends new rows of metrics and new events, each in order; what fails is sent again later."""

    def __init__(
        self,
        run: RunDirectory,
        config: TrackingConfig,
        event_log: EventLog,
        register: Register | None = None,
    ) -> None:
        self.run, self.event_log, self.register = run, event_log, register
        self.store = config.uri or ""
        self.address = config.uri or f"sqlite:///{run.path.parent / STORE}"
        self.problem: Exception | None = None
        """Why the last delivery stopped."""
        self.refusal: Exception | None = None
        """Why an event or a row was put aside last."""
        self._to: Destination | None = None
        self._leaving, self._given_up = threading.Event(), threading.Event()
        self._retries_refused = True
        self._thread = threading.Thread(target=self._walk, daemon=True)
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)

    def start(self) -> None:
        """Begin sending in the background."""
        self._thread.start()

    def finish(self, grace_s: float = GRACE_S) -> bool:
        """Send the rest; return whether all is sent.

        Waits as long as something is being sent, and `grace_s` for a server that is away.
        """
        self._leaving.set()
        until_s = time.monotonic() + grace_s
        while self._thread.is_alive() and (self.problem is None or time.monotonic() < until_s):
            self._thread.join(0.1)
        self._given_up.set()
        return not self.event_log.num_unsent(self.store)

    def page(self) -> str | None:
        """Return the address of the run's page, where there is a server that has one."""
        if self._to is None or not self.store.startswith("http"):
            return None
        path = f"#/experiments/{self._to.experiment_id}/runs/{self._to.run_id}"
        return f"{self.store.rstrip('/')}/{path}?workflowType=machine_learning"

    def explain(self) -> str:
        """Return why something is not sent."""
        reason = " ".join(str(self.problem or self.refusal).split())
        return textwrap.shorten(reason, 200, placeholder=" ...")

    def _walk(self) -> None:
        self._deliver()
        while not self._leaving.wait(AWAY_S if self.problem else EVERY_S):
            self._deliver()
        self._retries_refused = True
        while not self._deliver() and not self._given_up.wait(EVERY_S):
            pass

    def _deliver(self) -> bool:
        """Send what is new, as far as it goes; return whether it went to the end."""
        before = self.problem
        try:
            with FileLock(self.run.path / ".mlflow.lock"):
                to = self._to = self._to or self._open()
                for file in self.event_log.metric_files:  # before the event that ends the run
                    self._send_rows(file, to)
                self._send_new(to)
                if self._retries_refused:
                    self._retry_refused(to)
        except Exception as error:  # of any library that a store is reached by
            self.problem = error
            if before is None:
                logs.say(f"MLflow is away, the run keeps what there is to send: {self.explain()}")
            return False
        self.problem, self._retries_refused = None, False
        if before is not None:
            logs.say("MLflow is back and has received everything")
        return True

    def _send_rows(self, file: MetricFile, to: Destination) -> None:
        """Send the new rows of a file."""
        rows = file.unsent(self._sent_rows(file))
        while some := list(islice(rows, POINTS_AT_ONCE)):
            points = [row.points for row in some]
            accepted = self._attempt(partial(send_points, points, to), to)
            refused = () if accepted else tuple(one.step for one in points)
            sent = self._sent_rows(file)
            self._record_rows(
                file,
                last_row=some[-1].start,
                last_step=points[-1].step,
                refused=(*sent.refused, *refused),
            )

    def _send_new(self, to: Destination) -> None:
        """Send the new events, the points among them in groups."""
        logged_events = self.event_log.logged_events(self.event_log.progress(self.store).sent_bytes)
        for are_points, group in groupby(logged_events, lambda one: isinstance(one.event, Points)):
            while some := list(islice(group, POINTS_AT_ONCE if are_points else 1)):
                accepted = self._send(some, to)
                progress = self.event_log.progress(self.store)
                aside = () if accepted else tuple(one.start for one in some)
                self._record(sent_bytes=some[-1].end, aside=(*progress.aside, *aside))

    def _retry_refused(self, to: Destination) -> None:
        """Try again what was refused before."""
        for file in self.event_log.metric_files:
            sent = self._sent_rows(file)
            for row in file.refused(sent):
                if self._attempt(partial(send_points, [row.points], to), to):
                    sent = sent.model_copy(
                        update={"refused": tuple(x for x in sent.refused if x != row.points.step)}
                    )
            if sent != self._sent_rows(file):
                self._record_rows(file, refused=sent.refused)
        places = self.event_log.progress(self.store).aside
        found = (next(self.event_log.logged_events(place), None) for place in places)
        logged_events = [one for one in found if one is not None]
        left = [one.start for one in logged_events if not self._send([one], to)]
        self._record(aside=tuple(left))

    def _send(self, logged_events: Sequence[LoggedEvent], to: Destination) -> bool:
        """Send one event or many points; return whether they were accepted, as `_attempt` does."""
        points = [one.event for one in logged_events if isinstance(one.event, Points)]
        if points:
            return self._attempt(partial(send_points, points, to), to)
        return self._attempt(partial(logged_events[0].event.send, to), to)

    def _attempt(self, send: Callable[[], None], to: Destination) -> bool:
        """Return whether the store accepted it; raise where the server is away."""
        try:
            send()
        except Exception as error:
            to.client.get_run(to.run_id)  # fails too where it is the server that is away
            self.refusal = error
            return False
        return True

    def _sent_rows(self, file: MetricFile) -> SentRows:
        return self.event_log.progress(self.store).rows.get(file.name, SentRows())

    def _record_rows(self, file: MetricFile, **changes: object) -> None:
        rows = self.event_log.progress(self.store).rows
        sent = self._sent_rows(file).model_copy(update=changes)
        self._record(rows=rows | {file.name: sent})

    def _record(self, **changes: object) -> None:
        progress = self.event_log.progress(self.store)
        self.event_log.record(self.store, progress.model_copy(update=changes))

    def _open(self) -> Destination:
        """Find or make the run, its experiment and its parent; one that was deleted begins anew."""
        events = (logged.event for logged in self.event_log.logged_events())
        begin = next(event for event in events if isinstance(event, Begin))
        client = MlflowClient(tracking_uri=self.address, registry_uri=self.address)
        with FileLock(self.run.path.parent / ".mlflow.lock"):
            if not self.store:
                relocate(self.run.path.parent)
            experiment = self._experiment(client, begin.experiment)
            run_id = self.event_log.progress(self.store).run_id
            if run_id is None or not _is_there(client, run_id):
                run_id = _find_or_create(client, experiment, begin.own, begin.time_ms)
                self._record(run_id=run_id, sent_bytes=0, aside=(), rows={})
            if begin.parent is None:
                parent = _parent_of_all(client, experiment, begin)
            else:
                parent = _find_or_create(client, experiment, begin.parent, begin.time_ms)
            client.set_tag(run_id, PARENT, parent)
            client.update_run(run_id, name=begin.own.name)  # a child may have made it
        return Destination(client, self.run, experiment, run_id, self.register)

    def _experiment(self, client: MlflowClient, name: str) -> str:
        if found := client.get_experiment_by_name(name):
            return found.experiment_id
        folder = None if self.store else (self.run.path.parent / ARTIFACTS).as_uri()
        kind = {"mlflow.experimentKind": "custom_model_development", NOTE: EXPERIMENT_NOTE}
        return client.create_experiment(name, artifact_location=folder, tags=kind)


def _is_there(client: MlflowClient, run_id: str) -> bool:
    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _find_or_create(client: MlflowClient, experiment: str, key: Key, time_ms: int) -> str:
    found = client.search_runs([experiment], f"tags.`{KEY}` = '{key.key}'", max_results=1)
    if found:
        return found[0].info.run_id
    tags = {KEY: key.key, "mlflow.user": getpass.getuser()}
    created = client.create_run(experiment, start_time=time_ms, tags=tags, run_name=key.name)
    return created.info.run_id


def _parent_of_all(client: MlflowClient, experiment: str, begin: Begin) -> str:
    """Return the run below which all others of an experiment stand."""
    key = Key(key=f"experiment-{experiment}", name=f"{begin.experiment}: all runs")
    run_id = _find_or_create(client, experiment, key, begin.time_ms)
    run = client.get_run(run_id)
    if "purpose" not in run.data.tags:
        tags = [RunTag("purpose", "experiment"), RunTag(NOTE, PARENT_NOTE)]
        client.log_batch(run_id, tags=tags)
        client.set_terminated(run_id, "FINISHED", end_time=begin.time_ms)
    return run_id
