"""Run a command as somebody at a terminal does."""

import os
import pty
import re
import subprocess
import termios
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Shown(NamedTuple):
    """How a command ended and what it wrote to its terminal."""

    returncode: int
    raw: str

    @property
    def lines(self) -> list[str]:
        """All that was shown in some row of the terminal, in its order, without colours."""
        plain = re.sub(r"\033\[[\d;]*[mA-K]", "", self.raw)
        return [row.rstrip() for row in re.split(r"[\r\n]+", plain) if row.strip()]


def run_in_terminal(command: Sequence[str], cwd: Path, columns: int, timeout_s: float) -> Shown:
    """Run a command in a pseudo terminal of so many columns and wait for its end."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, columns))
    hidden = ("CI", "COLUMNS", "NO_COLOR")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    job = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment | {"TERM": "xterm-256color"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    received = bytearray()
    try:
        while chunk := os.read(master, 65536):
            received += chunk
    except OSError:  # nobody has the terminal open any more
        pass
    os.close(master)
    return Shown(job.wait(timeout_s), received.decode())
