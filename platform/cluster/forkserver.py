"""Workers of a local Ray, forked from one process that has imported the packages.

PyTorch, diffusers and their kin take a processor several seconds to import, in every worker anew.
A local cluster on processors forks its workers from a process that has done so once, and they
share that memory. Ray starts each by `fork_worker.py`, which has it forked here; where that cannot
be, the worker starts as on any other cluster.
"""

import gc
import json
import os
import resource
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from magicdistill.platform.cluster.fork_worker import OOM_SCORE

WORKER = Path(__file__).with_name("fork_worker.py")
MODULES = (
    *("pandas", "pyarrow.dataset", "av", "cv2", "magicdistill.platform.config.recipe", "torch"),
    *("magicdistill.models.networks.autoencoder.vae", "magicdistill.models.methods.build"),
    "deepspeed",
)
"""In the order in which workers need them. Ray is not among them: what it reads of the environment
is a worker's."""
NVIDIA = Path("/dev/nvidiactl")
"""There where CUDA is, which must not be touched before a fork."""
PATIENCE_S = 10.0
"""For a request that has begun."""


@contextmanager
def fork_server(environment: Mapping[str, str]) -> Iterator[str | None]:
    """Serve while the body runs; yields what Ray takes as `py_executable`, None beside GPUs.

    Its socket lies in /tmp as Ray's do, since TMPDIR may be too long for one. `environment` is what
    the workers have more than this process: libraries read some of it when they are loaded.
    """
    if NVIDIA.exists():
        yield None
        return
    with (
        tempfile.TemporaryDirectory(
            prefix="fork-", dir="/tmp", ignore_cleanup_errors=True
        ) as folder,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        address = f"{folder}/socket"
        listener.bind(address)
        listener.listen(128)
        command = [sys.executable, "-m", __name__, str(listener.fileno()), folder]
        with subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,  # its end is the end of this process
            stdout=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            start_new_session=True,  # Ctrl-C is for this process
        ) as server:
            listener.close()
            try:
                yield shlex.join([sys.executable, "-SE", str(WORKER), address])
            finally:
                server.kill()


def serve(listener: socket.socket) -> None:
    """Import, and fork whenever a worker is asked for, until the starting process ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the workers
    os.set_blocking(sys.stdin.fileno(), False)
    gc.disable()
    listener.settimeout(0)
    modules = list(MODULES)
    while _is_wanted():
        if modules:
            import_module(modules.pop(0))
        else:
            listener.settimeout(1)
        while request := _next(listener):
            _fork(request, listener)


def _is_wanted() -> bool:
    with suppress(BlockingIOError):
        return bool(os.read(sys.stdin.fileno(), 1))
    return True


@dataclass(frozen=True)
class Request:
    """A worker that is asked for."""

    connection: socket.socket
    """Its end tells the end of the worker."""
    streams: list[int]
    words: dict[str, Any]


def _next(listener: socket.socket) -> Request | None:
    """Return the next request, if there is one."""
    streams: list[int] = []
    try:
        connection, _ = listener.accept()
        connection.settimeout(PATIENCE_S)
        _, streams, _, _ = socket.recv_fds(connection, 1, 3)
        with connection.makefile("rb") as file:
            return Request(connection, streams, json.loads(file.readline()))
    except (OSError, ValueError):
        _close(streams)
        return None


def _close(streams: list[int]) -> None:
    for stream in streams:
        os.close(stream)


def _fork(request: Request, listener: socket.socket) -> None:
    # another thread of Python's could hold a lock for ever; Arrow's own has handlers for a fork
    if threading.active_count() == 1 and os.fork() == 0:
        listener.close()
        _become(request)
    request.connection.close()
    _close(request.streams)


def _become(request: Request) -> NoReturn:
    """Run a script as `python` would."""
    request.connection.sendall(b"!")
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    gc.freeze()  # what is shared stays so
    gc.enable()
    np.random.seed()  # the only generator that no fork seeds anew
    words = request.words
    os.setpgid(0, 0)  # Ray ends whole groups
    os.setpriority(os.PRIO_PROCESS, 0, words["niceness"])
    resource.setrlimit(resource.RLIMIT_NOFILE, words["num_files"])
    Path(OOM_SCORE).write_text(words["oom_score"])
    for number, stream in enumerate(request.streams):
        os.dup2(stream, number)
    _close(request.streams)
    os.chdir(words["folder"])
    os.environ.clear()
    os.environ.update(words["environment"])
    sys.argv = words["arguments"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
    shutil.rmtree(sys.argv[2], ignore_errors=True)
