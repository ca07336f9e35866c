"""Says that a group of workers starts again: what failed, and from which cycle it goes on."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from ray.exceptions import RayActorError
from ray.train import UserCallback

from magicdistill.platform.cluster.worker_failures import FinalError, describe_failures
from magicdistill.platform.runs.run_directory import RunDirectory


class RestartReporter(UserCallback):
    """Adds a progress line for each failure of the group, from Ray's controller of the training.

    `newest` returns the cycle of the newest checkpoint, 0 where there is none; `note` takes in each
    failure, for whoever counts them.
    """

    def __init__(
        self,
        run: RunDirectory,
        max_failures: int,
        newest: Callable[[], int],
        note: Callable[[Mapping[int, Exception]], None],
    ) -> None:
        self.run, self.max_failures, self.newest, self.note = run, max_failures, newest, note
        self.num_failures = 0
        self._reported: object = None

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Report a failure, once, although Ray may ask about the same group again."""
        group = None
        with suppress(FileNotFoundError):  # every group writes it anew
            facts = self.run.nodes_path.stat()
            group = facts.st_ino, facts.st_mtime_ns
        failed = (group, frozenset(worker_exceptions))
        if failed == self._reported:
            return
        self._reported = failed
        self.note(worker_exceptions)
        lines = describe_failures(self.run, worker_exceptions)
        self.run.say(f"{'; '.join(lines)}; {self._what_next(worker_exceptions)}")

    def _what_next(self, failures: dict[int, Exception]) -> str:
        if any(isinstance(error, FinalError) for error in failures.values()):
            return "the workers would fail so again, and are not started any more"
        deaths = [getattr(error, "health_check_failure", error) for error in failures.values()]
        if any(isinstance(death, RayActorError) and death.preempted for death in deaths):
            count = "not counted, for a node was taken away"
        else:
            self.num_failures += 1
            left = self.max_failures - self.num_failures
            if self.max_failures >= 0 > left:
                return f"no restart is left of {self.max_failures} (cluster.max_failures)"
            count = f"restarts left after this one: {left if self.max_failures >= 0 else 'all'}"
        cycle = self.newest()
        start = f"from cycle {cycle}" if cycle else "from the start, for nothing is saved yet"
        return f"the workers start again {start}; {count}"
