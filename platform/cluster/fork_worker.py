"""Stands in for `python` where a local Ray starts a worker: has it forked, or becomes python.

Run as a script, `fork_worker.py SOCKET SCRIPT ARGUMENT ...`, so that it imports nothing of the
project. The process stays for as long as its worker does.
"""

import json
import os
import resource
import socket
import sys

STREAMS = (0, 1, 2)
OOM_SCORE = "/proc/self/oom_score_adj"
"""Ray sets it of the process that it starts, so that memory is taken from workers first."""


def main() -> None:
    """Ask the fork server for the worker; without one, run the script in this process."""
    address, *command = sys.argv[1:]
    try:
        with open(OOM_SCORE) as score:
            request = {
                "arguments": command,
                "environment": dict(os.environ),
                "folder": os.getcwd(),
                "niceness": os.getpriority(os.PRIO_PROCESS, 0),
                "num_files": resource.getrlimit(resource.RLIMIT_NOFILE),
                "oom_score": score.read(),
            }
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(address)
            socket.send_fds(connection, [b"?"], STREAMS)
            connection.sendall(json.dumps(request).encode() + b"\n")
            if connection.recv(1):  # it is forked
                connection.recv(1)  # and has ended
                return
    except OSError:
        pass
    os.execv(sys.executable, [sys.executable, *command])


if __name__ == "__main__":
    main()
