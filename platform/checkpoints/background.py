"""One task at a time in a thread beside the training."""

import threading
from collections.abc import Callable

from magicdistill.platform.cluster import ranks


class Background:
    """Runs the tasks of all ranks, which start the same ones in the same order.

    A task may exchange with those of the other ranks (`platform/cluster/ranks.py`): it does so in a
    process group of its own, since the training uses the first one meanwhile. The thread ends with
    the process, whatever it is doing.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._group: ranks.Group | None = None

    def is_busy(self) -> bool:
        """Tell whether this rank's task is still running."""
        return self._thread is not None and self._thread.is_alive()

    def has_failed(self) -> bool:
        """Tell whether this rank's task has raised what `wait` has yet to raise."""
        return self._error is not None

    def start(self, task: Callable[[], None]) -> None:
        """Run a task once the one before is over, as `wait` does; every rank calls it."""
        self.wait()
        self._group = group = self._group or ranks.host_group()

        def run() -> None:
            try:
                with ranks.within(group):
                    task()
            except BaseException as error:  # of whatever kind: a thread has nobody to raise it to
                self._error = error

        self._thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the task, and raise what it has raised; every rank calls it."""
        if self._thread is not None:
            self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if error is not None:
            raise error
