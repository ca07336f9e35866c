"""Stands in for `python` where a local Ray starts a worker: has it forked, or becomes python.

Run as a script, so that it imports nothing of the project: `fork_worker.py SOCKET SCRIPT ARG ...`.
The process stays for as long as its worker does, and passes on the end of either.
"""

import json
import os
import socket
import sys

STANDARD_STREAMS = (0, 1, 2)


def main() -> None:
    """Ask the fork server for the worker; without one, run the script in this process."""
    address, *command = sys.argv[1:]
    request = {"arguments": command, "environment": dict(os.environ), "folder": os.getcwd()}
    request["niceness"] = os.nice(0)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(address)
            socket.send_fds(connection, [b"!"], STANDARD_STREAMS)
            connection.sendall(json.dumps(request).encode() + b"\n")
            if connection.recv(1) == b"!":  # forked
                connection.recv(1)  # until it ends
                return
    except OSError:
        pass
    os.execv(sys.executable, [sys.executable, *command])


if __name__ == "__main__":
    main()
