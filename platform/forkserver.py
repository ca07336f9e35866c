"""Worker processes of a local Ray, forked from one that has imported the packages.

PyTorch, diffusers and their kin take seconds of a processor to import, in every worker anew. A
local cluster's processes are forked instead from one that has done so, which also lets them share
the memory of it. Ray starts each worker by `fork_worker.py`, which has it forked here; where that
is not possible the worker starts as on any cluster.
"""

import json
import os
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("fork_worker.py")
MODULES = (
    *("pandas", "pyarrow.dataset", "torch", "scipy.stats", "peft", "av", "cv2", "deepspeed"),
    *("diffusers.models.transformers", "diffusers.models.autoencoders"),
)
"""In the order of import; a worker is forked with those that are done when it is asked for."""


@contextmanager
def fork_server(environment: Mapping[str, str]) -> Iterator[str]:
    """Serve while the body runs; yields what to give Ray as `py_executable`.

    `environment` is that of the workers, as libraries read some of it when they are loaded.
    """
    with tempfile.TemporaryDirectory(prefix="fork-") as folder:
        address = f"{folder}/socket"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address)
        listener.listen(128)
        command = [sys.executable, "-m", __spec__.name, str(listener.fileno())]
        server = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,  # its end is this process's
            stdout=subprocess.DEVNULL,
            pass_fds=(listener.fileno(),),
            start_new_session=True,
        )
        listener.close()
        try:
            yield shlex.join([sys.executable, "-S", "-E", str(WORKER), address])
        finally:
            server.kill()
            server.wait()


def serve(listener: socket.socket) -> None:
    """Import and fork, until the process that started this one ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    os.set_blocking(0, False)
    for name in MODULES:
        import_module(name)
        listener.settimeout(0)
        while _fork_next(listener):
            pass
    listener.settimeout(1.0)
    while _is_wanted():
        _fork_next(listener)


def _is_wanted() -> bool:
    try:
        return os.read(0, 1) != b""
    except BlockingIOError:
        return True


def _fork_next(listener: socket.socket) -> bool:
    """Fork a worker for the next that asks; False where none does."""
    try:
        connection, _ = listener.accept()
    except (BlockingIOError, TimeoutError):
        return False
    with connection:
        connection.settimeout(10)
        _, streams, _, _ = socket.recv_fds(connection, 1, 3)
        with connection.makefile("rb") as file:
            request = json.loads(file.readline())
        if threading.active_count() == 1 and os.fork() == 0:
            listener.close()
            connection.settimeout(None)
            connection.sendall(b"!")
            _become(request, streams, keep=connection)
        for stream in streams:
            os.close(stream)
    return True


def _become(request: dict[str, Any], streams: list[int], keep: socket.socket) -> None:
    """Run a script as `python` would; the connection ends with this process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)  # Ray may end a worker's group
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.nice(request["niceness"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = request["arguments"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as error:
        code = error.code
        os._exit(code if isinstance(code, int) else 1)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
