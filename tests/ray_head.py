"""A Ray cluster of one node that jobs are submitted to, with token authentication on."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
RAY = Path(sys.executable).with_name("ray")
PRESTARTS = ("RAY_enable_worker_prestart", "RAY_prestart_worker_first_driver")
"""Ray starts a worker for each CPU before a job asks, and it has the wrong environment then."""


@dataclass
class Head:
    """A head node with its own home, and so its own token."""

    folder: Path
    environment: dict[str, str]
    dashboard: str

    def submit(self, *entrypoint: str) -> subprocess.CompletedProcess[str]:
        flags = ["--address", self.dashboard, "--working-dir", "."]
        return subprocess.run(
            [str(RAY), "job", "submit", *flags, "--", *entrypoint],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(port: int, timeout_s: float) -> None:
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError(f"nothing listens on port {port} after {timeout_s} s")


@contextmanager
def ray_head() -> Iterator[Head]:
    """Start a head node with token authentication, and end it."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # a socket's path has no room for pytest's
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"HOME": str(folder), "RAY_AUTH_MODE": "token"}
    environment |= dict.fromkeys(PRESTARTS, "0")
    subprocess.run(
        [str(RAY), "get-auth-token", "--generate"],
        env=environment,
        check=True,
        capture_output=True,
    )
    port, dashboard = free_port(), free_port()
    command = f"start --head --block --num-cpus 8 --port {port} --dashboard-port {dashboard}"
    command += f" --dashboard-agent-listen-port {free_port()}"  # another cluster may have the usual
    log = (folder / "head.log").open("w")
    process = subprocess.Popen(
        [str(RAY), *command.split(), "--temp-dir", str(folder / "ray")],
        env=environment,
        stdout=log,
        stderr=log,
    )
    try:
        wait_for(dashboard, timeout_s=240)
        yield Head(folder, environment, f"http://127.0.0.1:{dashboard}")
    finally:
        for each in (*psutil.Process(process.pid).children(recursive=True), process):
            with suppress(psutil.NoSuchProcess):
                each.kill()  # an orderly end takes half a minute
        process.wait(60)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)  # Ray's last processes may still write
