"""Ends training early and in good order: on SIGTERM, or when Ray takes a node away."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from magicdistill.platform.cluster import ranks
from magicdistill.platform.runs import logs

_terminated = threading.Event()


class Notice(IntEnum):
    """What is asked of the workers after a cycle, by urgency: the highest of all ranks counts."""

    GO_ON = 0
    SAVE = 1
    """A node will be taken away: save once and go on; Ray moves the group when it is gone."""
    RESTART = 2
    """A worker received SIGTERM: save, and let Ray start the group again."""
    LEAVE = 3
    """The job received SIGTERM, or its user made the stop file: save and end."""
    FAIL = 4
    """What a rank left to a thread went wrong: all ranks wait for theirs, which raises it."""


class PreemptedError(Exception):
    """Raised to end a group of workers that Ray starts again; what it has done is saved."""


class LeavingError(Exception):
    """Raised to end a job whose work is saved."""


class Notices:
    """Agrees with all ranks on what is asked of them.

    They have to agree because saving is work of all ranks, and a signal reaches one of them alone.
    `stop` is the file that asks the job to end; `is_draining` tells whether a node of the group
    will be taken away, and every rank calls it; `has_failed` tells whether work that this rank left
    to a thread went wrong.
    """

    def __init__(
        self,
        stop: Path,
        is_draining: Callable[[], bool],
        device: torch.device | str,
        has_failed: Callable[[], bool] = lambda: False,
    ) -> None:
        self.stop, self.is_draining, self.device = stop, is_draining, device
        self.has_failed = has_failed
        self.has_saved = False

    def read(self) -> Notice:
        """Return the notice, the same on all ranks; every rank calls it.

        SAVE comes once, although Ray goes on announcing the loss until the node is gone.
        """
        mine = Notice.SAVE if self.is_draining() and not self.has_saved else Notice.GO_ON
        if _terminated.is_set():
            mine = Notice.RESTART
        if ranks.rank() == 0 and self.stop.exists():
            mine = Notice.LEAVE
        if self.has_failed():
            mine = Notice.FAIL
        agreed = torch.tensor(mine, device=self.device)
        if dist.is_initialized():
            dist.all_reduce(agreed, dist.ReduceOp.MAX)
        notice = Notice(int(agreed))
        self.has_saved |= notice is not Notice.GO_ON
        return notice


def is_draining() -> bool:
    """Tell whether Ray has announced that it loses a node of this group of workers."""
    import ray.train

    return ray.train.get_preemption_info() is not None


def watch_for_sigterm() -> None:
    """Let SIGTERM end this worker after its cycle, a second one at once.

    Ray runs training in a thread, and only a process's main thread may set a handler: the
    worker's actor does it there.
    """
    import ray

    actor = ray.get_runtime_context().current_actor
    ray.get(actor.execute.remote(_take_sigterm))


def _take_sigterm() -> None:
    """Note the first SIGTERM, and let the second end the process as it would without us."""

    def note(signum: int, frame: FrameType | None) -> None:
        _terminated.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, note)


@contextmanager
def leaving_in_order(stop: Path) -> Iterator[None]:
    """Let SIGTERM end the job once its workers have saved, a second one at once.

    For the main thread; `stop` is the file that tells the workers. Once they have left, the process
    ends with the status of one that SIGTERM ended, 143.
    """
    before = signal.getsignal(signal.SIGTERM)

    def ask(signum: int, frame: FrameType | None) -> None:
        stop.touch()
        signal.signal(signal.SIGTERM, before)
        logs.say("SIGTERM: leaving after this cycle and its checkpoint; once more leaves at once")

    signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
    if stop.exists():
        stop.unlink()
        sys.exit(128 + signal.SIGTERM)
