"""A real MLflow server over HTTP that tests kill and start again."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from urllib.error import URLError
from urllib.request import urlopen

import psutil

MLFLOW = Path(sys.executable).with_name("mlflow")
START_S = 240


class MlflowServer:
    """One address and one store; `start` and `kill` as often as a test wants."""

    def __init__(
        self,
        folder: Path,
        options: Sequence[str] = (),
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.folder = folder
        self._options, self._environment = options, environment
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when the server answers."""
        command = [str(MLFLOW), "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        command += self._options
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment |= self._environment
        with (self.folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        until_s = time.monotonic() + START_S
        while True:
            with suppress(URLError, ConnectionError), urlopen(f"{self.uri}/health", timeout=5):
                return
            assert time.monotonic() < until_s, (self.folder / "server.log").read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        """End all of its processes at once."""
        if self._process is None:
            return
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.kill()
        self._process.wait()
        self._process = None
